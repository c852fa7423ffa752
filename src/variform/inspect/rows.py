"""From places and traced calls to one row a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from variform.core.part import Part
from variform.inspect.count import Figures, storage_of
from variform.inspect.places import FOLDED, Place
from variform.inspect.symbols import Sizes
from variform.inspect.trace import Node, Shape


@dataclass(frozen=True)
class Row:
    """What one part of a model takes, gives and costs, its children included.

    Args:
        path: where it stands in the spec; empty for the whole.
        kind: of the part.
        name: of the part.
        inputs: shapes of what it is given, streams left out; sizes are named (`B`, `L`) where that is sure.
        outputs: shapes of what it returns, then `name: shape` of what it publishes.
        params: parameters, a shared part counted once.
        flops: operations of the forward pass, attention over visited pairs; a multiply-add counts 2.
        flops_dense: the same with attention over the full square.
        flops_backward: operations of the backward pass, without what is computed again.
        activation_bytes: kept for the backward pass; what several parts keep counts for the first.
        state_bytes: decode state; None where the model cannot decode.
        calls: how often it runs in one pass.
        shared: the name under which it is shared with other places, or None.
    """

    path: str
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: int
    flops: int
    flops_dense: int
    flops_backward: int
    activation_bytes: int
    state_bytes: int | None
    calls: int
    shared: str | None = None


def make_rows(
    tree: Place, runs: Sequence[Node], sizes: Sizes, state: Mapping[str, int] | None
) -> tuple[list[Row], dict[str, list[Node]]]:
    """Rows in the order of the spec, parents first, and the calls of the first run by path.

    Args:
        tree: the places.
        runs: the traced call of the model at each of `sizes`.
        sizes: batch and length of each run.
        state: decode-state bytes by path of the part that holds them; None where the model cannot decode.
    """
    by_run = [calls_by_path(tree, run) for run in runs]
    counted = params_by_path(tree)
    rows = []
    for place in tree.walk():
        firsts = [calls[place.path][0] if calls[place.path] else None for calls in by_run]
        seen = [node for node in firsts if node is not None]
        shapes = _Shapes(sizes, seen) if len(seen) == len(runs) else None
        nodes = by_run[0][place.path]
        total = Figures()
        for node in nodes:
            total.add(node.figures)
        rows.append(
            Row(
                path=place.path,
                kind=place.spec.kind,
                name=place.spec.name,
                inputs=shapes.inputs() if shapes else (),
                outputs=shapes.outputs() if shapes else (),
                params=counted[place.path],
                flops=total.flops,
                flops_dense=total.flops_dense,
                flops_backward=total.flops_backward,
                activation_bytes=total.activation_bytes,
                state_bytes=None if state is None else below(state, place.path),
                calls=len(nodes),
                shared=None if place.shared is None or place.shared.startswith(FOLDED) else place.shared,
            )
        )
    return rows, by_run[0]


@dataclass(frozen=True)
class _Shapes:
    sizes: Sizes
    nodes: list[Node]

    def inputs(self) -> tuple[str, ...]:
        named = self._named([node.named_inputs for node in self.nodes])
        return (*self._in_order([node.inputs for node in self.nodes]), *named)

    def outputs(self) -> tuple[str, ...]:
        published = self._named([node.published for node in self.nodes])
        return (*self._in_order([node.outputs for node in self.nodes]), *published)

    def _named(self, runs: list[dict[str, Shape]]) -> list[str]:
        names = [name for name in runs[0] if all(name in shapes for shapes in runs)]
        return [f"{name}: {self.sizes.shape([shapes[name] for shapes in runs])}" for name in names]

    def _in_order(self, runs: list[tuple[Shape, ...]]) -> tuple[str, ...]:
        if len({len(shapes) for shapes in runs}) != 1:
            return tuple(str(shape) for shape in runs[0])
        return tuple(self.sizes.shape(shapes) for shapes in zip(*runs, strict=True))


def calls_by_path(tree: Place, root: Node) -> dict[str, list[Node]]:
    """The traced calls of each place; the nth call of a part that stands at several places belongs to the nth."""
    found: dict[str, list[Node]] = {}

    def assign(place: Place, nodes: list[Node], above: list[Node]) -> None:
        found[place.path] = nodes
        for index, child in enumerate(place.children):
            same = [i for i, other in enumerate(place.children) if other.part is child.part]
            calls = _share(nodes, child.part, same.index(index), len(same))
            if not calls and child.shared is None:  # run by a part further up, not by the one that holds it
                calls = _share(above, child.part, 0, 1)
            assign(child, calls, nodes + above)

    assign(tree, [root], [])
    return found


def _share(nodes: list[Node], part: Part, place: int, places: int) -> list[Node]:
    return [call for node in nodes for call in [c for c in node.calls if c.part is part][place::places]]


def params_by_path(tree: Place) -> dict[str, int]:
    """Parameters of each place and all below it; what users share counts once within each."""
    found: dict[str, int] = {}

    def count(place: Place) -> tuple[int, dict[str, int]]:
        """Parameters without the shared ones, and those of the shared parts by name."""
        plain, shared = _own(place.part), {}
        for child in place.children:
            inner, inner_shared = count(child)
            shared.update(inner_shared)
            if child.shared is None or child.shared.startswith(FOLDED):
                plain += inner
            else:
                shared[child.shared] = inner
        found[place.path] = plain + sum(shared.values())
        return plain, shared

    count(tree)
    return found


def own_params(tree: Place) -> dict[str, dict[str, int]]:
    """Parameters that each place and all below it own, by owner; a shared part is one owner at all its places."""
    found: dict[str, dict[str, int]] = {}

    def scan(place: Place, key: str) -> dict[str, int]:
        owned = {key: _own(place.part)}
        for child in place.children:
            is_shared = child.shared is not None and not child.shared.startswith(FOLDED)
            step = child.path.removeprefix(place.path)
            owned.update(scan(child, f"shared {child.shared}" if is_shared else key + step))
        found[place.path] = {owner: count for owner, count in owned.items() if count}
        return owned

    scan(tree, "")
    return found


def _own(part: Part) -> int:
    """Parameters of a part and of its inner modules that are not parts themselves."""

    def scan(module: Any) -> Iterator[Tensor]:
        yield from module.parameters(recurse=False)
        for child in module.children():
            if not isinstance(child, Part):
                yield from scan(child)

    return sum({id(parameter): parameter.numel() for parameter in scan(part)}.values())


def state_by_path(state: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of a decode state by the path of the part that holds them."""
    found: dict[str, int] = {}
    seen: set[int] = set()

    def scan(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                is_branch = isinstance(item, Mapping) and key != "parts"
                scan(item, f"{path}.{key}".strip(".") if is_branch else path)
        elif isinstance(value, (tuple, list)):
            for item in value:
                scan(item, path)
        elif isinstance(value, Tensor):
            identity, storage = storage_of(value)
            if identity not in seen:
                seen.add(identity)
                found[path] = found.get(path, 0) + storage.nbytes()

    scan(state, "")
    return found


def below(state: Mapping[str, int], path: str) -> int:
    """The sum at a path and all paths below it."""
    return sum(size for at, size in state.items() if not path or at == path or at.startswith(f"{path}."))
