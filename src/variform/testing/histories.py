"""Instances of the parts that carry a history from layer to layer, in stacks that begin one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from variform.core.spec import Shared, Spec
from variform.parts.attention.across_layers import ScoreResidual, ValueResidual
from variform.parts.attention.softmax import LocalAttention
from variform.parts.embedding.deep import DeepEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.entry.layers import LayerAttention, LayerMixture
from variform.parts.entry.pooled import LayerPooling
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.history import BeginHistory, JoinSkip, KeepSkip
from variform.parts.stream_ops.inject import InjectInput
from variform.parts.stream_ops.token_shift import TokenShift
from variform.stack.pool import LayerPool
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.testing.hosts import COMPANION, FEED, Host, Setting, model_around
from variform.testing.samples import Sample, samples_for


def in_stack(layers: Callable[[Spec], list[Any]]) -> Host:
    """A host with these layers around the part; the companion comes after them."""

    def host(spec: Spec, setting: Setting) -> Spec:
        made = [*layers(spec), *([COMPANION] if setting.companion else [])]
        return model_around(setting, [LayerStack.spec(layers=made, executor=setting.executor)])

    return host


KEPT = [BeginHistory.spec(), KeepSkip.spec(stream="history")]
"""A history, and what enters the layers as the first that is in it."""


def _reading(entry: Spec) -> Spec:
    """A step with this entry, and a body for as many views."""
    return Sublayer.spec(body=MultiHead.spec() if entry.get("views") == 3 else FEED, entry=entry)


@samples_for(LayerMixture)
def _mixture() -> list[Sample]:
    host = in_stack(lambda spec: [*KEPT, _reading(spec)])
    return [
        Sample(LayerMixture.spec(count=2), host=host),
        Sample(LayerMixture.spec(count=2, views=3, weights="relu"), "three views", host=host),
    ]


@samples_for(LayerAttention)
def _attention() -> list[Sample]:
    host = in_stack(lambda spec: [*KEPT, COMPANION, _reading(spec)])
    return [
        Sample(LayerAttention.spec(rank=4), host=host),
        Sample(LayerAttention.spec(rank=4, views=3, activation="silu"), "three views", host=host),
    ]


@samples_for(BeginHistory)
def _begin() -> list[Sample]:
    def layers(spec: Spec) -> list[Any]:
        return [spec, *(Sublayer.spec(body=FEED, entry=LayerAttention.spec(rank=3)) for _ in range(2))]

    return [Sample(BeginHistory.spec(), host=in_stack(layers))]


@samples_for(KeepSkip)
def _keep() -> list[Sample]:
    return [
        Sample(
            KeepSkip.spec(),
            host=in_stack(lambda spec: [BeginHistory.spec(stream="skips"), spec, COMPANION, JoinSkip.spec()]),
        )
    ]


@samples_for(JoinSkip)
def _join() -> list[Sample]:
    return [
        Sample(
            JoinSkip.spec(),
            host=in_stack(lambda spec: [BeginHistory.spec(stream="skips"), KeepSkip.spec(), COMPANION, spec]),
        )
    ]


@samples_for(InjectInput)
def _inject() -> list[Sample]:
    host = in_stack(lambda spec: [spec, Sublayer.spec(body=FEED)])
    return [Sample(InjectInput.spec(), host=host), Sample(InjectInput.spec(gate=True), "gated", host=host)]


@samples_for(TokenShift)
def _shift() -> list[Sample]:
    def layers(spec: Spec) -> list[Any]:
        entry = LayerMixture.spec(count=1, views=3) if spec.get("inputs") == 3 else None
        begin = [] if entry is None else [BeginHistory.spec()]
        return [*begin, Sublayer.spec(body=spec, entry=entry)]

    return [
        Sample(TokenShift.spec(body=FEED), host=in_stack(layers)),
        Sample(TokenShift.spec(body=MultiHead.spec(), amount=2), "two places", host=in_stack(layers)),
        Sample(TokenShift.spec(body=MultiHead.spec(), amount=2, inputs=3), "three inputs", host=in_stack(layers)),
    ]


@samples_for(ValueResidual)
def _values() -> list[Sample]:
    def layers(spec: Spec) -> list[Any]:
        steps = [Sublayer.spec(body=MultiHead.spec(attention=one), norm=None) for one in (ValueResidual.spec(), spec)]
        return [BeginHistory.spec(stream="first_values"), *steps]

    inner = LocalAttention.spec(window=5)
    return [
        Sample(ValueResidual.spec(), host=in_stack(layers)),
        Sample(ValueResidual.spec(attention=inner, learned=True), "learned, in a window", host=in_stack(layers)),
    ]


@samples_for(LayerPool)
def _pool() -> list[Sample]:
    held = [Shared("second", Sublayer.spec(body=FEED)), Shared("first", Sublayer.spec(body=FEED))]
    return [Sample(LayerPool.spec(layers=held), host=in_stack(lambda spec: [spec, *reversed(held)]))]


@samples_for(ScoreResidual)
def _scores() -> list[Sample]:
    def layers(spec: Spec) -> list[Any]:
        steps = [Sublayer.spec(body=MultiHead.spec(attention=spec), norm=None) for _ in range(2)]
        return [BeginHistory.spec(stream="scores"), *steps]

    inner = LocalAttention.spec(window=5)
    return [
        Sample(ScoreResidual.spec(), host=in_stack(layers)),
        Sample(ScoreResidual.spec(attention=inner), "in a window", host=in_stack(layers)),
    ]


@samples_for(DeepEmbedding)
def _deep() -> list[Sample]:
    def host(spec: Spec, setting: Setting) -> Spec:
        layers = [Sublayer.spec(body=FEED), *([COMPANION] if setting.companion else []), Sublayer.spec(body=FEED)]
        return model_around(setting, [LayerStack.spec(layers=layers, executor=setting.executor)], embedding=spec)

    return [Sample(DeepEmbedding.spec(embedding=TokenEmbedding.spec(), depth=2), host=host)]


@samples_for(LayerPooling)
def _pooling() -> list[Sample]:
    host = in_stack(lambda spec: [*KEPT, COMPANION, _reading(spec)])
    return [
        Sample(LayerPooling.spec(), host=host),
        Sample(LayerPooling.spec(norm=None, views=3, rotation="rotary"), "learned, three views", host=host),
    ]
