"""Instances of the attentions through landmarks and projections: few landmarks, grouped heads, what is added."""

from __future__ import annotations

from variform.parts.attention.nystrom import NystromAttention
from variform.parts.attention.orthoformer import OrthoformerAttention
from variform.testing.samples import Sample, samples_for


@samples_for(NystromAttention)
def _nystrom() -> list[Sample]:
    return [
        Sample(NystromAttention.spec(landmarks=6)),
        Sample(NystromAttention.spec(), "more landmarks than tokens, mostly"),
        Sample(NystromAttention.spec(landmarks=5, conv_kernel=3, original_init=True), "with a convolution"),
        Sample(NystromAttention.spec(landmarks=4, inverse="exact"), "exact inverse"),
    ]


@samples_for(OrthoformerAttention)
def _orthoformer() -> list[Sample]:
    return [
        Sample(OrthoformerAttention.spec()),
        Sample(OrthoformerAttention.spec(landmarks=5), "few landmarks"),
    ]
