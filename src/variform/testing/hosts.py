"""The smallest model around a part of each kind, so that every check speaks to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from variform.core.fields import Field, fields_of
from variform.core.part import Part
from variform.core.registry import parts
from variform.core.spec import Shared, Spec
from variform.errors import ConfigError
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.testing.filling import minimal

FACTS: dict[str, Any] = {
    "dim": 16,
    "heads": 4,
    "dim_head": 4,
    "kv_heads": 4,
    "max_seq_len": 160,
    "vocab_size": 11,
    "dim_context": 12,
    "dim_condition": 6,
    "depth": 2,
    "layer": 0,
    "residual_streams": 3,
    "inputs": 16,
    "outputs": 16,
    "dim_value": 4,
}
"""The sizes of the hosts, and what a part built alone inherits."""


@dataclass(frozen=True)
class Setting:
    """How the host is put together.

    Args:
        causal: whether position i depends on positions <= i only.
        companion: an attention beside the part, which reads every stream; without it the part stands alone.
        executor: of the stacks.
        shared: the part's layer stands twice as one module.
    """

    causal: bool = True
    companion: bool = True
    executor: str = "plain"
    shared: bool = False


Host = Callable[[Spec, Setting], Spec]
"""From a part and a setting to the model around it."""

COMPANION = Sublayer.spec(body=MultiHead.spec())
FEED = MLP.spec(hidden=12)


def host_of(kind: str) -> Host:
    """The usual host of a kind.

    Raises:
        ConfigError: parts of this kind run inside others only.
    """
    if kind in _HOSTS:
        return _HOSTS[kind]
    for part in parts().values():
        slot = next((f for f in fields_of(part) if kind in f.kind_names()), None)
        if slot is not None and part.kind in _HOSTS:
            return _in_slot(part, slot)
    raise ConfigError(f"no registered part has a slot for a {kind}, so there is no model to check one in")


def _in_slot(part: type[Part], slot: Field) -> Host:
    """A host for parts that fill a slot of another part."""

    def host(spec: Spec, setting: Setting) -> Spec:
        filled = {slot.name: [spec] if slot.many else spec}
        return _HOSTS[part.kind](minimal(part, without=slot.name).replace(**filled), setting)

    return host


def in_layers(layer: Callable[[Spec], Spec]) -> Host:
    """A host with the part in its layers: twice, with the companion between the two."""

    def host(spec: Spec, setting: Setting) -> Spec:
        one: Any = layer(spec)
        if setting.shared:
            one = Shared("part", one)
        layers = [one, COMPANION, one] if setting.companion else [one]
        return model_around(setting, [LayerStack.spec(layers=layers, executor=setting.executor)])

    return host


def model_around(setting: Setting, stacks: list[Spec], **slots: Any) -> Spec:
    """A model with the usual sizes around stacks, an embedding, a head."""
    sizes = {name: FACTS[name] for name in ("dim", "heads", "vocab_size", "dim_context", "dim_condition")}
    return Transformer.spec(
        embedding=slots.pop("embedding", None),
        stacks=stacks,
        causal=setting.causal,
        max_seq_len=FACTS["max_seq_len"],
        **sizes,
        **slots,
    )


def _beside(setting: Setting) -> list[Spec]:
    """The stack of a host whose part stands outside the stacks."""
    layer = COMPANION if setting.companion else Sublayer.spec(body=FEED)
    return [LayerStack.spec(layers=[layer], executor=setting.executor)]


def _stack(spec: Spec, setting: Setting) -> Spec:
    spec = spec.replace(executor=setting.executor) if "executor" in spec.leaves() else spec
    one: Any = Shared("part", spec) if setting.shared else spec
    return model_around(setting, [one, LayerStack.spec(layers=[COMPANION]), one] if setting.companion else [one])


_HOSTS: dict[str, Host] = {
    "layer": in_layers(lambda spec: spec),
    # Without a norm before it, what stands at padding reaches the part as it is.
    "mixer": in_layers(lambda spec: Sublayer.spec(body=spec, norm=None)),
    "feedforward": in_layers(lambda spec: Sublayer.spec(body=spec)),
    "norm": in_layers(lambda spec: Sublayer.spec(body=FEED, norm=spec)),
    "nonlinearity": in_layers(lambda spec: Sublayer.spec(body=FEED.replace(pre_act=spec))),
    "gate": in_layers(lambda spec: Sublayer.spec(body=GLU.spec(hidden=12, before=spec))),
    "residual": in_layers(lambda spec: Sublayer.spec(body=FEED, residual=spec)),
    "attention": in_layers(lambda spec: Sublayer.spec(body=MultiHead.spec(attention=spec), norm=None)),
    "rotation": in_layers(lambda spec: Sublayer.spec(body=MultiHead.spec(rotation=spec))),
    "bias": in_layers(lambda spec: Sublayer.spec(body=MultiHead.spec(position_bias=spec))),
    "memory": in_layers(lambda spec: Sublayer.spec(body=MultiHead.spec(attention=SoftmaxAttention.spec(memory=spec)))),
    "scoring": in_layers(
        lambda spec: Sublayer.spec(body=MultiHead.spec(attention=SoftmaxAttention.spec(scores=[spec])))
    ),
    "weighting": in_layers(
        lambda spec: Sublayer.spec(body=MultiHead.spec(attention=SoftmaxAttention.spec(weights=spec)))
    ),
    "position": lambda spec, setting: model_around(
        setting, _beside(setting), embedding=TokenEmbedding.spec(position=spec)
    ),
    "embedding": lambda spec, setting: model_around(setting, _beside(setting), embedding=spec),
    "head": lambda spec, setting: model_around(setting, _beside(setting), head=spec),
    "stack": _stack,
    "model": lambda spec, setting: spec,
}
