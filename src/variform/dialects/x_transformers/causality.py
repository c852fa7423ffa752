"""Causality that a call asks for: a view of a stack, of the same modules, whose self-attention looks back or not."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from variform.dialects.x_transformers.errors import InputError
from variform.ops.masks import Causal
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Attention, Mixer
from variform.parts.mixer.cross import CrossMultiHead

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention_layers import AttentionLayers
    from variform.dialects.x_transformers.wrapper import TransformerWrapper


def layers_with(layers: AttentionLayers, causal: bool) -> AttentionLayers:
    """A view of a stack of this dialect with another causality; biases and gates stay as they were built.

    Raises:
        InputError: a part that was built for one causality.
    """
    if layers.causal == causal:
        return layers
    view: AttentionLayers = _view(layers, native=_seen(layers.native, causal, {}))
    view.__dict__["causal"] = causal
    return view


def model_with(model: TransformerWrapper, causal: bool) -> TransformerWrapper:
    """The same of a model around such a stack."""
    own: AttentionLayers = model.__dict__["attn_layers"]
    layers = layers_with(own, causal)
    if layers is own:
        return model
    view: TransformerWrapper = _view(model, native=_around(model.native, own.native, layers.native))
    view.__dict__["attn_layers"] = layers
    return view


def _seen(module: Any, causal: bool, done: dict[int, nn.Module]) -> Any:
    """A view of a module in which self-attention is causal or not; modules that stand in several places stay one."""
    if id(module) in done:
        return done[id(module)]
    if isinstance(module, CrossMultiHead):
        return module
    children = {name: _seen(child, causal, done) for name, child in module._modules.items() if child is not None}
    changed = {name: child for name, child in children.items() if child is not module._modules[name]}
    if isinstance(module, SoftmaxAttention):
        if module.scores is not None and module.scores.accumulates:
            raise InputError("causal=... of a call: what earlier tokens hide (attn_selective) needs an order of tokens")
        view: Any = _view(module, **changed)
        view.causal, view.structure = causal, Causal() if causal else None
    elif isinstance(module, (Attention, Mixer)) and not changed:
        raise InputError(f"causal=... of a call: {module.kind} {module.name!r} was built for one causality")
    else:
        view = _view(module, **changed) if changed else module
    done[id(module)] = view
    return view


def _around(module: Any, old: nn.Module, new: nn.Module) -> Any:
    if module is old:
        return new
    children = {name: _around(child, old, new) for name, child in module._modules.items() if child is not None}
    changed = {name: child for name, child in children.items() if child is not module._modules[name]}
    return _view(module, **changed) if changed else module


def _view(module: Any, **children: nn.Module) -> Any:
    """A module with all that this one has but these children."""
    view = copy.copy(module)
    view.__dict__["_modules"] = {**module._modules, **children}
    view.__dict__.pop("_signature", None)
    return view
