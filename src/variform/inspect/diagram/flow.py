"""What a diagram shows: panels of items that read and write named streams, and the lines between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Stream = tuple[str, str]
"""A stream's name and its shape in words."""


@dataclass(frozen=True)
class Item:
    """One box.

    Args:
        title: what it is.
        family: what colours it: "embedding", "norm", "attention", "feedforward", "stream", "head" or "other".
        detail: its settings, in words.
        reads: names of the streams it takes.
        writes: the streams it gives, with their shapes in words.
    """

    title: str
    family: str
    detail: str
    reads: tuple[str, ...]
    writes: tuple[Stream, ...]


@dataclass(frozen=True)
class Panel:
    """Items that belong together: a block, an embedding, a run of equal layers.

    Args:
        title: the heading; no heading when empty.
        repeat: how often all of it runs, one copy after the other.
        items: in order.
    """

    title: str
    repeat: int
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Flow:
    """A whole model.

    Args:
        panels: in order.
        inputs: the streams it starts from.
        outputs: the names it gives back.
    """

    panels: tuple[Panel, ...]
    inputs: tuple[Stream, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Arrow:
    """From one box of a panel to another: an item's number, or an entry of the panel (negative: -1 is the first)."""

    source: int
    target: int
    stream: str


@dataclass(frozen=True)
class Entry:
    """A stream that reaches a panel from outside: its name, shape, and where it comes from."""

    name: str
    shape: str
    origin: str


@dataclass
class Wiring:
    """A panel with its lines.

    Args:
        panel: the panel.
        entries: streams that come from outside.
        arrows: between entries and items.
        exits: streams that later panels, the next copy or the caller read: name, shape, and the item (or, negative,
            the entry) they come from.
    """

    panel: Panel
    entries: list[Entry] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    exits: list[tuple[str, str, int]] = field(default_factory=list)


def wire(flow: Flow) -> list[Wiring]:
    """Find for each panel what enters, what leaves, and which box reads what of which."""
    written = {name: ("input", shape) for name, shape in flow.inputs}
    wirings = []
    for index, panel in enumerate(flow.panels):
        wiring = _inside(panel, written)
        later = read_first(flow.panels[index + 1 :], flow.outputs)
        carried = {entry.name for entry in wiring.entries} if panel.repeat > 1 else set()
        for number, item in enumerate(panel.items):
            for name, shape in item.writes:
                if name in later | carried and _last_writer(panel, name) == number:
                    wiring.exits.append((name, shape, number))
                written[name] = (panel.title or f"part {index + 1}", shape)
        wirings.append(wiring)
    return wirings


def _inside(panel: Panel, around: dict[str, tuple[str, str]]) -> Wiring:
    wiring = Wiring(panel)
    source: dict[str, int] = {}
    for number, item in enumerate(panel.items):
        for name in dict.fromkeys(item.reads):
            if name not in source:
                origin, shape = around.get(name, ("input", ""))
                wiring.entries.append(Entry(name, shape, origin))
                source[name] = -len(wiring.entries)
            wiring.arrows.append(Arrow(source[name], number, name))
        source.update({name: number for name, _ in item.writes})
    return wiring


def read_first(panels: Iterable[Panel], outputs: tuple[str, ...]) -> set[str]:
    """Names that are needed after a panel: read before they are written anew, or given back."""
    needed: set[str] = set()
    fresh: set[str] = set()
    for panel in panels:
        for item in panel.items:
            needed.update(name for name in item.reads if name not in fresh)
            fresh.update(name for name, _ in item.writes)
    return needed | {name for name in outputs if name not in fresh}


def _last_writer(panel: Panel, name: str) -> int:
    return max(number for number, item in enumerate(panel.items) if any(n == name for n, _ in item.writes))
