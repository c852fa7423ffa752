"""Causality that a call asks for: a view of a stack, of the same modules, whose self-attention looks back or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from variform.dialects.x_transformers.errors import InputError
from variform.ops.masks import Causal, Window
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.kinds import Attention, Mixer
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.stack.tapped import changed

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention_layers import AttentionLayers


def layers_with(layers: AttentionLayers, causal: bool) -> AttentionLayers:
    """A view of a stack of this dialect with another causality; biases and gates stay as they were built.

    Raises:
        InputError: a part that was built for one causality.
    """
    if layers.causal == causal:
        return layers
    view: AttentionLayers = changed(layers, native=_seen(layers.native, causal, {}))
    view.__dict__["causal"] = causal
    return view


def _seen(module: Any, causal: bool, done: dict[int, nn.Module]) -> Any:
    """A view of a module in which self-attention is causal or not; modules that stand in several places stay one."""
    if id(module) in done:
        return done[id(module)]
    if isinstance(module, (CrossMultiHead, ProjectedCrossAttention)):
        return module
    children = {name: _seen(child, causal, done) for name, child in module._modules.items() if child is not None}
    other = {name: child for name, child in children.items() if child is not module._modules[name]}
    if isinstance(module, SoftmaxAttention):
        if module.scores is not None and module.scores.accumulates:
            raise InputError("causal=... of a call: what earlier tokens hide (attn_selective) needs an order of tokens")
        view: Any = changed(module, **other)
        view.causal, view.structure = causal, Causal() if causal else None
    elif isinstance(module, LocalAttention) and module.causal:  # a limit on the past alone, as in layers built so
        view = changed(module, **other)
        view.causal, view.structure = False, Window(module.window - 1, None)
    elif isinstance(module, (Attention, Mixer)) and not other:
        raise InputError(f"causal=... of a call: {module.kind} {module.name!r} was built for one causality")
    else:
        view = changed(module, **other) if other else module
    done[id(module)] = view
    return view
