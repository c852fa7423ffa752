"""Views of a model of the same modules: others in the place of some, or what layers read changed on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError
from variform.parts.embedding.module import ModuleEmbedding
from variform.parts.embedding.tokens import TokenEmbedding, fitting
from variform.parts.kinds import Norm, Output, Stack, StreamPart, Streams
from variform.stack.execute import ModuleList
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.state import signature
from variform.stack.sublayer import Sublayer

Change = Callable[[Tensor], Tensor]
"""From features to features of the same shape."""

M = TypeVar("M", bound=nn.Module)


def changed(module: M, **children: nn.Module | None) -> M:
    """A view of a module, with all that it has but these children."""
    view = object.__new__(type(module))  # not copied: torch.compile follows no copies
    left = {"_signature", *children}  # a decode state is of one order; a slot that was empty is no child
    own = {name: value for name, value in module.__dict__.items() if name not in left}
    view.__dict__.update(own, _modules={**module._modules, **children})
    return view


def replaced(module: Any, old: nn.Module, new: nn.Module) -> Any:
    """A view of a module in which one of those below it is another."""
    if module is old:
        return new
    children = {name: replaced(child, old, new) for name, child in module._modules.items() if child is not None}
    differing = {name: child for name, child in children.items() if child is not module._modules[name]}
    return changed(module, **differing) if differing else module


class TappedLayer(nn.Module):
    """A layer whose input is changed, and whose output is told; its decode state is the layer's own.

    Args:
        layer: what runs.
        change: of its input; None for none.
        told: where its output is put, under `place`; None for nowhere.
        place: of the layer in its stack.
    """

    def __init__(self, layer: StreamPart, change: Change | None, told: dict[int, Tensor] | None, place: int) -> None:
        super().__init__()
        self.layer = layer
        self.change = change
        self.told = told
        self.place = place

    @property
    def remembers(self) -> bool:
        """As the layer."""
        return self.layer.remembers

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Change the input and run the layer."""
        out = self.layer(x if self.change is None else self.change(x), streams)
        if self.told is not None:
            self.told[self.place] = out[0] if isinstance(out, tuple) else out
        return out


class TappedEmbedding(nn.Module):
    """An embedding whose vectors of tokens are changed before positions and whatever else is added to them.

    Args:
        embedding: of tokens.
        change: of the vectors.
    """

    def __init__(self, embedding: TokenEmbedding | ModuleEmbedding, change: Change) -> None:
        super().__init__()
        self.embedding = embedding
        self.change = change
        self.bare = changed(embedding, position=None, norm=None)
        self.bare.__dict__["dropout"] = 0.0

    @property
    def vocab_size(self) -> Any:
        """As the embedding."""
        return self.embedding.vocab_size

    def forward(self, inputs: Tensor, streams: Streams) -> Tensor:
        """Embed, change, and go on as the embedding does."""
        whole: Any = self.embedding
        vectors: Any = self.bare(inputs, {})
        x = self.change(vectors)
        if whole.position is not None:
            x = x + whole.position(streams.get("positions"), inputs.shape[1], x)
        if streams.get("added") is not None:
            x = x + fitting(streams["added"], x)
        if whole.norm is not None:
            x = whole.norm(x)
        dropout = getattr(whole, "dropout", 0.0)
        return F.dropout(x, dropout) if dropout and self.training else x


class ToldStep(nn.Module):
    """A step whose input is told.

    Args:
        step: what runs.
        told: where its input is put, under `place`.
        place: of the step.
    """

    def __init__(self, step: StreamPart, told: dict[int, Tensor], place: int) -> None:
        super().__init__()
        self.step = step
        self.told = told
        self.place = place

    @property
    def remembers(self) -> bool:
        """As the step."""
        return self.step.remembers

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Tell the input and run the step."""
        self.told[self.place] = x
        return self.step(x, streams)


class TappedNorm(nn.Module):
    """A norm whose input is changed."""

    def __init__(self, norm: Norm, change: Change) -> None:
        super().__init__()
        self.norm = norm
        self.change = change

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Change and normalise."""
        return self.norm(self.change(x), condition)


def layer_stack(stack: nn.Module) -> LayerStack:
    """The list of layers within a stack."""
    return next(module for module in stack.modules() if isinstance(module, LayerStack))


def tapped_stack(stack: Stack, changes: Mapping[int, Change], told: dict[int, Tensor] | None = None) -> Stack:
    """A view of a stack in which the inputs of layers are changed, and their outputs told.

    Args:
        stack: a list of layers, or what stands around one.
        changes: place of a layer -> what is done to its input.
        told: where each layer's output is put, by its place.

    Raises:
        ConfigError: there is no such layer; layers that are computed again from their outputs.
    """
    inner = layer_stack(stack)
    layers = list(inner.layers.in_order())
    for place in changes:
        if not 0 <= place < len(layers):
            raise ConfigError(f"there are layers 0..{len(layers) - 1}", path="changes", value=place)
    if inner.executor == "reversible":
        raise ConfigError("reversible layers have two streams, and their inputs cannot be changed on the way")
    steps: list[Any] = [
        TappedLayer(layer, changes.get(place), told, place)  # type: ignore[arg-type]
        if told is not None or place in changes
        else layer
        for place, layer in enumerate(layers)
    ]
    view: Stack = replaced(stack, inner, changed(inner, layers=ModuleList(steps)))
    return view


def tapped(
    model: Transformer,
    tokens: Change | None = None,
    changes: Mapping[int, Change] | None = None,
    told: dict[int, Tensor] | None = None,
) -> Transformer:
    """A view of a model, of the same modules and decode states, in which features are changed on their way.

    Args:
        model: of tokens, with one stack.
        tokens: what is done to the vectors of tokens, before anything is added to them.
        changes: place of a layer -> what is done to its input.
        told: where each layer's output is put, by its place.

    Raises:
        ConfigError: there is no such layer, or no vectors of tokens.
    """
    view = model
    if changes or told is not None:
        (stack,) = model.stacks
        taps = tapped_stack(stack, changes or {}, told)  # type: ignore[arg-type]
        view = changed(view, stacks=ModuleList([taps]))
    if tokens is not None:
        embedding = model.embedding
        parts = embedding.modules() if embedding is not None else ()
        held = next((part for part in parts if isinstance(part, (TokenEmbedding, ModuleEmbedding))), None)
        if held is None:
            raise ConfigError("the embedding has no vectors of tokens", path="tokens")
        view = changed(view, embedding=replaced(embedding, held, TappedEmbedding(held, tokens)))
    if not torch.compiler.is_compiling():
        view.__dict__["_signature"] = signature(model)
    return view


def mixing_steps(layers: ModuleList) -> list[Sublayer]:
    """The steps that mix tokens of their own sequence, as they run."""
    found: list[Sublayer] = []
    for layer in layers.in_order():
        if isinstance(layer, Sublayer):
            found += [layer] if layer.remembers else []
        elif isinstance(inner := getattr(layer, "sublayers", None), ModuleList):
            found += mixing_steps(inner)
    return found


def tapped_mixing(
    model: Transformer, told: dict[int, Tensor] | None = None, changes: Mapping[int, Change] | None = None
) -> Transformer:
    """A view of a model in which the inputs of steps that mix tokens are told, and what their branches read changed.

    Args:
        model: with one stack.
        told: number of a step, as they run -> [B, L, dim], what entered it.
        changes: number of a step -> what is done to the input of its norm (of its body, where it has no norm).
    """
    (stack,) = model.stacks
    inner = layer_stack(stack)
    steps = _tapped_steps(inner.layers, 0, told, changes or {})
    taps = replaced(stack, inner, changed(inner, layers=steps))
    view = changed(model, stacks=ModuleList([taps]))
    if not torch.compiler.is_compiling():
        view.__dict__["_signature"] = signature(model)
    return view


def _tapped_steps(
    layers: ModuleList, number: int, told: dict[int, Tensor] | None, changes: Mapping[int, Change]
) -> ModuleList:
    """The layers, of which the first step that mixes has this number."""
    found: list[nn.Module] = []
    for layer in layers.in_order():
        if isinstance(layer, Sublayer):
            mixes = layer.remembers
            found.append(_tapped_step(layer, number, told, changes) if mixes else layer)
            number += mixes
        elif isinstance(inner := getattr(layer, "sublayers", None), ModuleList):
            found.append(changed(layer, sublayers=_tapped_steps(inner, number, told, changes)))
            number += len(mixing_steps(inner))
        else:
            found.append(layer)
    return ModuleList(found)


def _tapped_step(
    step: Sublayer, number: int, told: dict[int, Tensor] | None, changes: Mapping[int, Change]
) -> nn.Module:
    own: Sublayer = step
    change = changes.get(number)
    if change is not None and step.norm is not None:
        own = changed(step, norm=TappedNorm(step.norm, change))
    elif change is not None:
        own = changed(step, body=TappedLayer(step.body, change, None, 0))
    return own if told is None else ToldStep(own, told, number)
