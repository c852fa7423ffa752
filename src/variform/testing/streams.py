"""Instances of parts that carry several residual streams, or keep state in a residual."""

from __future__ import annotations

from typing import Any

from variform.core.spec import Shared, Spec
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.residual.gated_multi import GatedMultiResidual
from variform.parts.residual.hyper import HyperConnection
from variform.parts.residual.mean_split import MeanSplitResidual
from variform.parts.stream_ops.branch import BranchStart, ScaledBranch
from variform.parts.stream_ops.key_condition import KeyCondition
from variform.stack.multi_stream import MultiStreamStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.testing.filling import minimal
from variform.testing.hosts import FACTS, FEED, Host, Setting, model_around
from variform.testing.samples import Sample, samples_for


def _several(body: Spec) -> Host:
    """A host whose layers carry several streams, the part in all of them."""

    def host(spec: Spec, setting: Setting) -> Spec:
        one: Any = Sublayer.spec(body=body, residual=spec)
        one = Shared("part", one) if setting.shared else one
        attention = Sublayer.spec(body=MultiHead.spec(), residual=spec.replace(input_views=1))
        layers = [one, attention, one] if setting.companion else [one]
        inner = LayerStack.spec(layers=layers, executor=setting.executor)
        return model_around(setting, [MultiStreamStack.spec(stack=inner, residual_streams=FACTS["residual_streams"])])

    return host


@samples_for(HyperConnection)
def _hyper_connection() -> list[Sample]:
    attention = MultiHead.spec()
    return [
        Sample(HyperConnection.spec(), host=_several(FEED)),
        Sample(HyperConnection.spec(input_views=3, home=1), "views", _several(attention)),
        Sample(HyperConnection.spec(legacy=True), "legacy", _several(FEED)),
    ]


@samples_for(GatedMultiResidual)
def _gated_multi() -> list[Sample]:
    return [
        Sample(GatedMultiResidual.spec(rank=5), host=_several(FEED)),
        Sample(GatedMultiResidual.spec(rank=5, input_views=3, home=1), "views", _several(MultiHead.spec())),
    ]


@samples_for(MeanSplitResidual)
def _mean_split() -> list[Sample]:
    return [Sample(MeanSplitResidual.spec()), Sample(MeanSplitResidual.spec(learned=True), "learned")]


@samples_for(ScaledBranch)
def _scaled_branch() -> list[Sample]:
    return [
        Sample(minimal(ScaledBranch).replace(factor=0.5, gain=0.2)),
        Sample(ScaledBranch.spec(body=FEED, factor=0.5), "feedforward"),
    ]


@samples_for(BranchStart)
def _branch_start() -> list[Sample]:
    return [Sample(minimal(BranchStart)), Sample(BranchStart.spec(body=FEED, scale=0.5), "feedforward")]


@samples_for(KeyCondition)
def _key_condition() -> list[Sample]:
    return [Sample(KeyCondition.spec(body=MultiHead.spec(kv_heads=2)))]


@samples_for(MultiStreamStack)
def _multi_stream() -> list[Sample]:
    steps = [Sublayer.spec(body=body, residual="hyper_connection") for body in (MultiHead.spec(), FEED)]
    post = [step.replace(norm=None, out_norm="layer_norm") for step in steps]
    return [
        Sample(MultiStreamStack.spec(stack=LayerStack.spec(layers=steps), residual_streams=3, norm="layer_norm")),
        Sample(MultiStreamStack.spec(stack=LayerStack.spec(layers=post), residual_streams=2), "post-norm"),
    ]
