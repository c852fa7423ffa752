"""The flow of any other model: stacks are cut into runs of equal layers, sublayers opened into their parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from variform.core.dims import Dim, parse_shape
from variform.core.resolve import MODEL_STREAMS
from variform.core.spec import Shared, Spec
from variform.inspect.diagram.flow import Flow, Item, Panel, read_first
from variform.inspect.diagram.fold import fold, heading
from variform.inspect.diagram.lines import items_of
from variform.inspect.diagram.settings import family, settings
from variform.inspect.places import without_layer
from variform.stack.program import Program
from variform.stack.sublayer import Sublayer
from variform.stack.trace import trace_lines
from variform.stack.values import input_values

_QUIET = frozenset(
    {
        *("positions", "valid", "segments", "mask", "state", "cache", "bias", "prefix_valid", "context_mask"),
        *("added", "passes", "exit", "beside", "two_way", "context_positions"),
    }
)
"""Streams that tell where tokens stand; drawing them to every part would hide what the model computes."""


def tree_flow(spec: Spec, shapes: dict[str, str]) -> Flow:
    """The flow of a resolved model.

    Args:
        spec: the model.
        shapes: the shape of each part's result in words, by path.
    """
    reader = _Reader(shapes)
    if spec.get("encoder") is not None and spec.get("decoder") is not None:
        reader.model(spec["encoder"], "encoder", "source", "encoder ")
        reader.rename_last("context")
        reader.model(spec["decoder"], "decoder", "target", "decoder ")
        inputs: tuple[str, ...] = ("source", "target")
    else:
        reader.model(spec, "", "inputs", "")
        inputs = ("inputs",)
    read = read_first(reader.panels, ())
    outer = (*(name for name in inputs if name in read), *sorted(read - set(inputs)))
    return Flow(tuple(reader.panels), tuple((name, "") for name in outer), (reader.panels[-1].items[-1].writes[0][0],))


@dataclass
class _Reader:
    shapes: dict[str, str]
    panels: list[Panel] = field(default_factory=list)

    def model(self, spec: Any, path: str, source: str, title: str) -> None:
        """Embedding, stacks, head."""
        spec = _inner(spec)
        embedding, head = spec.get("embedding"), spec.get("head")
        if embedding is None and spec.get("stacks") is None:
            self.panels.append(Panel(title.strip(), 1, (self._leaf(spec, path, source, "x"),)))
            return
        if embedding is not None:
            leaf = self._leaf(_inner(embedding), _join(path, "embedding"), source, "x")
            self.panels.append(Panel(f"{title}embedding", 1, (leaf,)))
        for index, stack in enumerate(spec.get("stacks") or ()):
            self._stack(_inner(stack), _join(path, f"stacks.{index}"), title)
        if head is not None:
            leaf = self._leaf(_inner(head), _join(path, "head"), "x", "output")
            self._append(leaf, f"{title}head")

    def rename_last(self, name: str) -> None:
        """What the last panel gives is known by another name to those after it."""
        last = self.panels[-1]
        item = last.items[-1]
        changed = Item(item.title, item.family, item.detail, item.reads, ((name, item.writes[0][1]), *item.writes[1:]))
        self.panels[-1] = Panel(last.title, last.repeat, (*last.items[:-1], changed))

    def _append(self, item: Item, title: str) -> None:
        """Add to the last panel if it runs once and is no embedding, else open one."""
        last = self.panels[-1] if self.panels else None
        if last is not None and last.repeat == 1 and last.title.endswith("final norm"):
            self.panels[-1] = Panel(f"{last.title} and head", 1, (*last.items, item))
        else:
            self.panels.append(Panel(title, 1, (item,)))

    def _stack(self, spec: Spec, path: str, title: str) -> None:
        inner = spec.get("stack")
        if inner is not None and spec.get("layers") is None:  # a stack around a stack
            self.panels.append(Panel(f"{title}{spec.name}", 1, (self._leaf(spec, path, "x", "x", bare=True),)))
            self._stack(_inner(inner), _join(path, "stack"), title)
            return
        layers = [_inner(layer) for layer in spec.get("layers") or ()]
        runs = fold([without_layer(layer) for layer in layers])
        for run in runs:
            places = range(run.start, run.start + run.count)
            items = tuple(item for i in places for item in self._layer(layers[i], _join(path, f"layers.{i}")))
            which = heading(runs, run, "layer") or f"layers 1 to {len(layers)}"
            self.panels.append(Panel(f"{title}{'layer 1' if len(layers) == 1 else which}", run.times, items))
        if spec.get("norm") is not None:
            leaf = self._leaf(_inner(spec["norm"]), _join(path, "norm"), "x", "x")
            self.panels.append(Panel(f"{title}final norm", 1, (leaf,)))

    def _layer(self, spec: Spec, path: str) -> Iterator[Item]:
        """The boxes of a layer, from `x` to `x`."""
        if spec.part is Sublayer:
            yield from self._sublayer(spec, path)
        elif spec.part is Program:
            x = (Dim.symbol("B"), Dim.symbol("L"), spec["dim"])
            declared = {name: parse_shape(sizes) for name, sizes in (spec["streams"] or {}).items()}
            yield from items_of(trace_lines(spec["lines"], input_values({"x": x, **declared})).rows)
        elif spec.get("sublayers") is not None:
            for index, child in enumerate(spec["sublayers"]):
                yield from self._layer(_inner(child), _join(path, f"sublayers.{index}"))
        else:
            yield self._leaf(spec, path, "x", "x")

    def _sublayer(self, spec: Spec, path: str) -> Iterator[Item]:
        source = "x"
        for slot in ("entry", "norm", "body", "branch_norm"):
            if spec.get(slot) is not None:
                yield self._leaf(_inner(spec[slot]), _join(path, slot), source, "branch")
                source = "branch"
        shape = self.shapes.get(path, "")
        dropped = ", ".join(f"{name} {spec[name]:g}" for name in ("dropout", "drop_path", "layer_drop") if spec[name])
        residual = spec.get("residual")
        if residual is None:
            yield Item("add", "stream", dropped, ("x", "branch"), (("x", shape),))
        else:
            joined = _inner(residual)
            detail = ", ".join(filter(None, (settings(joined), dropped)))
            yield Item(joined.name, "stream", detail, ("x", "branch"), (("x", shape),))
        if spec.get("out_norm") is not None:
            yield self._leaf(_inner(spec["out_norm"]), _join(path, "out_norm"), "x", "x")

    def _leaf(self, spec: Spec, path: str, source: str, into: str, bare: bool = False) -> Item:
        streams = set(spec.part.reads_streams(spec.args)) if bare else _streams(spec)
        further = sorted(name for name in streams if name not in _QUIET)
        published = [(name, "") for name in spec.part.publishes(spec.args) if name not in MODEL_STREAMS]
        return Item(
            title=spec.name,
            family=family(spec),
            detail="" if bare else settings(spec),
            reads=(source, *further),
            writes=((into, self.shapes.get(path, "")), *published),
        )


def _streams(spec: Spec) -> set[str]:
    """The streams that a part or one in its slots reads from outside."""
    found = set(spec.part.reads_streams(spec.args))
    given: set[str] = set()
    for _, _, child in spec.children():
        found |= _streams(_inner(child)) - given
        given |= {name for _, inner in _inner(child).walk() for name in inner.part.publishes(inner.args)}
    return found - set(spec.part.publishes(spec.args))


def _inner(part: Any) -> Spec:
    inner = part.spec if isinstance(part, Shared) else part
    assert isinstance(inner, Spec)
    return inner


def _join(path: str, step: str) -> str:
    return f"{path}.{step}" if path else step
