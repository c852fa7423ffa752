"""Instances of layers and stacks."""

from __future__ import annotations

from variform.core.spec import Shared, Spec
from variform.parts.stream_ops.carry import AddStream, Publish
from variform.stack.condition import ConditionedStack
from variform.stack.recurrent import LoopedStack, RecycledStack
from variform.stack.registers import RegisterStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.testing.hosts import COMPANION, FEED, Setting, model_around
from variform.testing.samples import Sample, samples_for


def _carried(spec: Spec, setting: Setting) -> Spec:
    inner = [COMPANION] if setting.companion else [Sublayer.spec(body=FEED)]
    layers = [Publish.spec(stream="skip"), *inner, AddStream.spec(stream="skip")]
    return model_around(setting, [LayerStack.spec(layers=layers, executor=setting.executor)])


@samples_for(Publish)
def _publish() -> list[Sample]:
    return [Sample(Publish.spec(stream="skip"), host=_carried)]


@samples_for(AddStream)
def _add_stream() -> list[Sample]:
    return [Sample(AddStream.spec(stream="skip"), host=_carried)]


@samples_for(Sublayer)
def _sublayer() -> list[Sample]:
    full = Sublayer.spec(
        body=FEED, norm="rms_norm", branch_norm="layer_norm", out_norm="layer_norm", residual="layer_scale"
    )
    return [
        Sample(Sublayer.spec(body="multi_head")),
        Sample(full, "all slots"),
        Sample(Sublayer.spec(body=Sublayer.spec(body="multi_head")), "nested"),
    ]


@samples_for(LayerStack)
def _stack() -> list[Sample]:
    layer = Sublayer.spec(body="multi_head")
    twice = [Shared("inner", layer), Sublayer.spec(body=FEED), Shared("inner")]
    return [
        Sample(LayerStack.spec(layers=[layer], norm="layer_norm")),
        Sample(LayerStack.spec(layers=twice), "a layer used twice"),
    ]


@samples_for(ConditionedStack)
def _conditioned() -> list[Sample]:
    layers = [Sublayer.spec(body="multi_head", norm="adaptive"), Sublayer.spec(body=FEED, norm="adaptive")]
    stack = LayerStack.spec(layers=layers, norm="adaptive")
    return [Sample(ConditionedStack.spec(stack=stack, expansion=2), host=_conditioned_model)]


def _conditioned_model(spec: Spec, setting: Setting) -> Spec:
    inner = spec["stack"].replace(executor=setting.executor)
    return model_around(setting, [spec.replace(stack=inner)])


@samples_for(RegisterStack)
def _registers() -> list[Sample]:
    inner = LayerStack.spec(layers=[Sublayer.spec(body="multi_head")])
    return [Sample(RegisterStack.spec(stack=inner, count=2))]


@samples_for(RecycledStack)
def _recycled() -> list[Sample]:
    inner = LayerStack.spec(layers=[Sublayer.spec(body="multi_head")])
    return [Sample(RecycledStack.spec(stack=inner, passes=3))]


@samples_for(LoopedStack)
def _looped() -> list[Sample]:
    inner = LayerStack.spec(layers=[Sublayer.spec(body="multi_head")], norm="layer_norm")
    return [Sample(LoopedStack.spec(stack=inner, passes=3, result="mean"))]
