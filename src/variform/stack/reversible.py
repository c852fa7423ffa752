"""The executor `reversible` of stacks: two streams take turns, and the backward pass computes one from the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.ops.attention.meter import is_metered
from variform.ops.reversible import Draws, Step, Told, reversible
from variform.parts.kinds import Streams
from variform.stack.execute import ModuleList, run_in_order
from variform.stack.sublayer import Sublayer, TransformerLayer, Twin

Result = tuple[Tensor, Tensor, dict[str, Any]]
"""Both streams, and what is published beside them."""

REMEDY = "take the executor 'checkpoint', which keeps one tensor a layer"


def run_reversible(layers: ModuleList, x: Tensor, streams: Streams) -> tuple[Tensor, dict[str, Any]]:
    """Run the sublayers of a stack as reversible steps; the result is the mean of the two streams.

    Both streams begin as `x`, and are carried in float32 at least: what is computed back from sums of low precision
    would drift.

    Args:
        layers: of the stack.
        x: [B, L, dim].
        streams: the stack's side inputs.

    Returns:
        [B, L, dim] in the type of `x`, and what is told beside it: the new decode state, losses.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if streams.get("state") is None and torch.is_grad_enabled() and isinstance(x, FakeTensor) and is_metered():
        a, b, published = _measured(layers, wide, streams, x.dtype)
    elif streams.get("state") is None:
        a, b, published = _reversed(layers, wide, streams, x.dtype)
    else:
        a, b, published = _in_turn(layers, wide, streams, x.dtype)
    return ((a + b) / 2).to(x.dtype), published


def reversible_problems(layers: Sequence[Any]) -> list[Problem]:
    """What keeps layers, described, from being reversible; paths are those below the stack."""
    return [problem for index, layer in enumerate(layers) for problem in _of_layer(described(layer), f"layers.{index}")]


def _of_layer(layer: Spec, path: str) -> Iterator[Problem]:
    if layer.part is TransformerLayer:
        for index, child in enumerate(layer["sublayers"]):
            yield from _of_layer(described(child), f"{path}.sublayers.{index}")
        return
    if layer.part is not Sublayer:
        message = f"a reversible stack is made of sublayers, and {layer.name!r} is none"
        yield Problem(path, message, hint=f"make it the body of a sublayer, or {REMEDY}")
        return
    residual = described(layer["residual"])
    if residual is not None and not residual.part.adds(residual.args):
        message = f"a reversible step adds to the stream, and {residual.name!r} changes the stream itself"
        yield Problem(f"{path}.residual", message, hint=f"leave it out, or {REMEDY}")
    if layer["out_norm"] is not None:
        message = "a reversible step cannot norm the sum"
        yield Problem(f"{path}.out_norm", message, hint="norm the branch: branch_norm, or norm")
    for below, part in layer.walk():
        if told := part.part.publishes(part.args):
            message = (
                f"{part.name!r} publishes {', '.join(told)}, and reversible layers hand on nothing but their result"
            )
            yield Problem(f"{path}.{below}" if below else path, message, hint=REMEDY)


def _in_turn(layers: ModuleList, x: Tensor, streams: Streams, dtype: torch.dtype, twin: Twin | None = None) -> Result:
    """The layers as they stand."""
    out = run_in_order(layers, x, {**streams, "twin": twin or Twin(x, dtype)}, "layers")
    if not isinstance(out, tuple):
        return out, out, {}  # no layer
    b, published = out
    return published.pop("twin").other, b, published


def _reversed(layers: ModuleList, x: Tensor, streams: Streams, dtype: torch.dtype) -> Result:
    """The layers as one function that keeps its results alone; losses are told through it."""
    before = streams.get("losses")
    leaves, tree = pytree.tree_flatten({name: stream for name, stream in streams.items() if name != "losses"})
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    sides = [leaves[place] for place in places]
    rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    names: list[str] = []

    def filled(sides: Sequence[Tensor]) -> dict[str, Any]:
        known = dict(zip(places, sides, strict=True))
        found = pytree.tree_unflatten([known.get(place, leaf) for place, leaf in enumerate(rest)], tree)
        return {**found} if before is None else {**found, "losses": ()}

    def forward(a: Tensor, b: Tensor, sides: Sequence[Tensor], draws: Draws | None) -> tuple[Tensor, Tensor, Told]:
        own = streams if before is None else {**streams, "losses": ()}
        a, b, published = _in_turn(layers, b, own, dtype, Twin(a, dtype, draws))
        told = published.get("losses", ())
        names.extend(name for name, _ in told)
        return a, b, tuple(loss for _, loss in told)

    def step(sublayer: Sublayer) -> Step:
        def run(x: Tensor, sides: Sequence[Tensor]) -> tuple[Tensor, Told]:
            out = sublayer(x, {**filled(sides), "twin": Twin(None, dtype)})
            branch, published = out if isinstance(out, tuple) else (out, {})
            return branch, tuple(loss for _, loss in published.get("losses", ()))

        return Step(run, sublayer)

    a, b, told = reversible([step(sublayer) for sublayer in _sublayers(layers)], x, x, sides, forward)
    return a, b, {} if before is None else {"losses": (*before, *zip(names, told, strict=True))}


def _sublayers(layers: ModuleList) -> Iterator[Sublayer]:
    for layer in layers.in_order():
        if isinstance(layer, TransformerLayer):
            yield from _sublayers(layer.sublayers)
        else:
            assert isinstance(layer, Sublayer)
            yield layer


def _measured(layers: ModuleList, x: Tensor, streams: Streams, dtype: torch.dtype) -> Result:
    """Stand-ins whose cost is measured go through all operations, and the results alone are kept."""
    with saved_tensors_hooks(lambda tensor: None, lambda kept: kept):
        a, b, published = _in_turn(layers, x, streams, dtype)
    sides = [leaf for leaf in pytree.tree_leaves(dict(streams)) if isinstance(leaf, Tensor)]
    a, b = _Kept.apply(a, b, *sides)  # type: ignore[no-untyped-call]
    return a, b, published


class _Kept(torch.autograd.Function):
    """What the reversible function keeps, for the measurement."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, *sides: Tensor) -> tuple[Tensor, Tensor]:
        a, b = a.view_as(a), b.view_as(b)
        ctx.save_for_backward(a, b, *sides)
        return a, b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("stand-ins have no gradients")
