"""The executor `reversible` of stacks: two streams take turns, and the backward pass computes one from the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.ops.attention.meter import is_metered
from variform.ops.reversible import Draws, Step, Told, reversible
from variform.parts.kinds import Output, Streams
from variform.stack.execute import ModuleList, run_in_order
from variform.stack.sublayer import Sublayer, TransformerLayer, Twin

Result = tuple[Tensor, dict[str, Any]]
"""The result of layers, and what is published beside it."""

Both = tuple[Tensor, Tensor, dict[str, Any]]
"""Both streams, and what is published beside them."""

REMEDY = "take the executor 'checkpoint', which keeps one tensor a layer"


def run_reversible(layers: ModuleList, x: Tensor, streams: Streams) -> tuple[Tensor, dict[str, Any]]:
    """Run the sublayers of a stack as reversible steps; the result is the mean of the two streams.

    Both streams begin as `x`, and are carried in float32 at least: what is computed back from sums of low precision
    would drift. A layer of another make (patches that are merged) is given the mean, and two streams begin anew.

    Args:
        layers: of the stack.
        x: [B, L, dim].
        streams: the stack's side inputs.

    Returns:
        [B, L, dim] in the type of `x`, and what is told beside it: the new decode state, losses.
    """
    state: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for places, turns in _runs(layers):
        if turns:
            x, published = _mean(layers, x, streams, places)
        else:
            x, published = _parted(run_in_order(layers, x, streams, "layers", places))
        state.update(published.pop("state", {}))
        told.update(published)
        streams = {**streams, **published}
    return x, {name: told[name] for name in ("losses",) if name in told} | ({"state": state} if state else {})


def _runs(layers: ModuleList) -> Iterator[tuple[range, bool]]:
    """Places of layers that follow one another, and whether they are reversible."""
    kinds = [isinstance(layer, (Sublayer, TransformerLayer)) for layer in layers.in_order()]
    start = 0
    for stop in range(1, len(kinds) + 1):
        if stop == len(kinds) or kinds[stop] != kinds[start]:
            yield range(start, stop), kinds[start]
            start = stop


def _mean(layers: ModuleList, x: Tensor, streams: Streams, places: range) -> Result:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if streams.get("state") is not None:
        a, b, published = _in_turn(layers, wide, streams, x.dtype, places)
    elif torch.is_grad_enabled() and isinstance(x, FakeTensor) and is_metered():
        a, b, published = _measured(layers, wide, streams, x.dtype, places)
    else:
        a, b, published = _reversed(layers, wide, streams, x.dtype, places)
    return ((a + b) / 2).to(x.dtype), published


def _parted(out: Output) -> Result:
    return out if isinstance(out, tuple) else (out, {})


def reversible_problems(layers: Sequence[Any]) -> list[Problem]:
    """What keeps layers, described, from being reversible; paths are those below the stack."""
    return [
        problem
        for index, layer in enumerate(map(described, layers))
        if layer.part in (Sublayer, TransformerLayer)
        for problem in _of_layer(layer, f"layers.{index}")
    ]


def _of_layer(layer: Spec, path: str) -> Iterator[Problem]:
    if layer.part is TransformerLayer:
        for index, child in enumerate(layer["sublayers"]):
            yield from _of_layer(described(child), f"{path}.sublayers.{index}")
        return
    if layer.part is not Sublayer:
        message = f"a reversible layer is made of sublayers, and {layer.name!r} is none"
        yield Problem(path, message, hint=f"let it stand between the layers, or {REMEDY}")
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


def _in_turn(
    layers: ModuleList, x: Tensor, streams: Streams, dtype: torch.dtype, places: range, twin: Twin | None = None
) -> Both:
    """The layers as they stand."""
    out = run_in_order(layers, x, {**streams, "twin": twin or Twin(x, dtype)}, "layers", places)
    b, published = _parted(out)
    if "twin" not in published:
        return (x, b, published) if twin is None or twin.other is None else (twin.other, b, published)  # no sublayer
    return published.pop("twin").other, b, published


def _reversed(layers: ModuleList, x: Tensor, streams: Streams, dtype: torch.dtype, places: range) -> Both:
    """The layers as one function that keeps its results alone; losses are told through it."""
    before = streams.get("losses")
    leaves, tree = pytree.tree_flatten({name: stream for name, stream in streams.items() if name != "losses"})
    tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    sides = [leaves[place] for place in tensors]
    rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    names: list[str] = []

    def filled(sides: Sequence[Tensor]) -> dict[str, Any]:
        known = dict(zip(tensors, sides, strict=True))
        found = pytree.tree_unflatten([known.get(place, leaf) for place, leaf in enumerate(rest)], tree)
        return {**found} if before is None else {**found, "losses": ()}

    def forward(a: Tensor, b: Tensor, sides: Sequence[Tensor], draws: Draws | None) -> tuple[Tensor, Tensor, Told]:
        own = streams if before is None else {**streams, "losses": ()}
        a, b, published = _in_turn(layers, b, own, dtype, places, Twin(a, dtype, draws))
        told = published.get("losses", ())
        names.extend(name for name, _ in told)
        return a, b, tuple(loss for _, loss in told)

    def step(sublayer: Sublayer) -> Step:
        def run(x: Tensor, sides: Sequence[Tensor]) -> tuple[Tensor, Told]:
            out = sublayer(x, {**filled(sides), "twin": Twin(None, dtype)})
            branch, published = out if isinstance(out, tuple) else (out, {})
            return branch, tuple(loss for _, loss in published.get("losses", ()))

        return Step(run, sublayer)

    chosen = list(layers.in_order())[places.start : places.stop]
    a, b, told = reversible([step(sublayer) for sublayer in _sublayers(chosen)], x, x, sides, forward)
    return a, b, {} if before is None else {"losses": (*before, *zip(names, told, strict=True))}


def _sublayers(layers: Iterable[nn.Module]) -> Iterator[Sublayer]:
    for layer in layers:
        if isinstance(layer, TransformerLayer):
            yield from _sublayers(layer.sublayers.in_order())
        else:
            assert isinstance(layer, Sublayer)
            yield layer


def _measured(layers: ModuleList, x: Tensor, streams: Streams, dtype: torch.dtype, places: range) -> Both:
    """Stand-ins whose cost is measured go through all operations, and the results alone are kept."""
    with saved_tensors_hooks(lambda tensor: None, lambda kept: kept):
        a, b, published = _in_turn(layers, x, streams, dtype, places)
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
