"""Instances of embeddings."""

from __future__ import annotations

from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.embedding.summed import SummedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.norm.norms import LayerNorm
from variform.testing.samples import Sample, samples_for


@samples_for(TokenEmbedding)
def _tokens() -> list[Sample]:
    return [
        Sample(TokenEmbedding.spec()),
        Sample(TokenEmbedding.spec(position="learned", norm="layer_norm", scale=True), "position and norm"),
    ]


@samples_for(PlacedEmbedding)
def _placed() -> list[Sample]:
    return [Sample(PlacedEmbedding.spec(embedding="tokens", position="sinusoidal"))]


@samples_for(FeatureEmbedding)
def _features() -> list[Sample]:
    return [
        Sample(FeatureEmbedding.spec(position="sinusoidal")),
        Sample(FeatureEmbedding.spec(dim_in=5, bias=True, position="sinusoidal", norm=LayerNorm.spec()), "mapped"),
    ]


@samples_for(PrefixedEmbedding)
def _prefixed() -> list[Sample]:
    return [Sample(PrefixedEmbedding.spec(embedding="tokens", gradient=0.3))]


@samples_for(SummedEmbedding)
def _summed() -> list[Sample]:
    return [Sample(SummedEmbedding.spec(embedding=TokenEmbedding.spec(position="sinusoidal"), norm="layer_norm"))]
