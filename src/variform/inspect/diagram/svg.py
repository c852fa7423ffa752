"""A flow as an SVG picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from variform.inspect.diagram.flow import Entry, Flow, Item, Wiring, wire
from variform.inspect.diagram.layout import Edge, Layout, Node, layout

MOST = 1600
"""Pixels: the widest a picture becomes."""

_MARGIN, _PAD, _HEAD, _BETWEEN = 24.0, 18.0, 30.0, 26.0
_TITLE, _SMALL = 13.0, 11.0
_LINE = 15.0
_CHARS = 34
_FILLS = {
    "embedding": ("#fff3d6", "#d9a520"),
    "norm": ("#e3f4e6", "#4c9f62"),
    "attention": ("#fde6dc", "#d96b3b"),
    "feedforward": ("#e0edfb", "#3f7fc1"),
    "stream": ("#f1f1f3", "#8a8d93"),
    "head": ("#efe5fa", "#8657b8"),
    "other": ("#e5f3f4", "#3d969b"),
}
_STROKES = ("#555b66", "#b3541e", "#2f6fb0", "#2e8b57", "#8657b8", "#a33b62", "#7a6a00", "#00798c", "#5d5d9c")


def svg_text(flow: Flow) -> str:
    """The picture: panels from top to bottom, at most `MOST` pixels wide."""
    wirings = wire(flow)
    colors = _Colors()
    panels = [_Panel(wiring, colors) for wiring in wirings]
    lefts = _lefts(panels)
    width = max(left + panel.width for left, panel in zip(lefts, panels, strict=True)) + _MARGIN
    parts: list[str] = []
    titles: list[str] = []
    y = _MARGIN
    before: dict[str, tuple[float, float]] = {}
    for panel, left in zip(panels, lefts, strict=True):
        parts += panel.draw(left, y)
        parts += panel.joined(before, left, y)
        titles += panel.heading(left, y)
        before = panel.exits_at(left, y)
        y += panel.height + _BETWEEN
    height = y - _BETWEEN + _MARGIN
    style = (
        f"text{{font-family:Helvetica,Arial,sans-serif;font-size:{_SMALL:g}px;fill:#333}}"
        f".t{{font-size:{_TITLE:g}px;font-weight:bold;fill:#111}}"
        ".h{paint-order:stroke;stroke:#fbfbfc;stroke-width:5px}.m{font-family:Menlo,Consolas,monospace;font-size:10.5px}path{fill:none;stroke-width:1.4}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">'
    )
    defs = f"<style>{style}</style>" + "".join(_arrowhead(color) for color in _STROKES)
    return "\n".join([head, defs, '<rect width="100%" height="100%" fill="white"/>', *parts, *titles, "</svg>"]) + "\n"


def _lefts(panels: list[_Panel]) -> list[float]:
    """The left edge of each panel: streams run straight down from panel to panel where the width allows it."""
    lefts = [0.0]
    for above, panel in itertools.pairwise(panels):
        exits, entries = above.exits_at(lefts[-1], 0.0), panel.entries_at(0.0, 0.0)
        shared = [exits[name][0] - entries[name][0] for name in entries if name in exits]
        lefts.append(shared[0] if shared else lefts[-1] + (above.width - panel.width) / 2)
    ends = [left + panel.width for left, panel in zip(lefts, panels, strict=True)]
    if max(ends) - min(lefts) > MOST - 2 * _MARGIN:
        widest = max(panel.width for panel in panels)
        return [_MARGIN + (widest - panel.width) / 2 for panel in panels]
    return [left - min(lefts) + _MARGIN for left in lefts]


def _arrowhead(color: str) -> str:
    return (
        f'<marker id="a{color[1:]}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto">'
        f'<path d="M0,0.5 L8,4 L0,7.5 z" style="fill:{color};stroke:none"/></marker>'
    )


class _Colors:
    """One colour a stream, by order of appearance; names that come later share."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def of(self, name: str) -> str:
        return self.known.setdefault(name, _STROKES[len(self.known) % len(_STROKES)])


@dataclass
class _Box:
    """What is written into a rectangle: lines of (text, class, colour)."""

    lines: list[tuple[str, str, str]]
    fill: str
    stroke: str
    round: float
    dashed: bool = False

    @property
    def size(self) -> tuple[float, float]:
        widest = max(_width(text, style) for text, style, _ in self.lines)
        return widest + 20, len(self.lines) * _LINE + 9


def _width(text: str, style: str) -> float:
    return len(text) * {"t": 0.64 * _TITLE, "m": 6.35, "": 0.56 * _SMALL}[style]


class _Panel:
    def __init__(self, wiring: Wiring, colors: _Colors) -> None:
        self.wiring = wiring
        self.colors = colors
        entries, items = wiring.entries, wiring.panel.items
        self.boxes = [
            *(_entry_box(entry, colors) for entry in entries),
            *(_item_box(item, colors) for item in items),
            *(_pill(name, shape, colors.of(name)) for name, shape, _ in wiring.exits),
        ]
        edges, self.names = self._edges()
        self.plan: Layout = layout([box.size for box in self.boxes], edges, MOST - 2 * _MARGIN - 2 * _PAD)
        title = _width(self._title(), "t")
        self.width = max(self.plan.width, title) + 2 * _PAD
        self.height = self.plan.height + 2 * _PAD + (_HEAD if self._title() else 0.0)

    def _title(self) -> str:
        panel = self.wiring.panel
        return panel.title + (f", {panel.repeat}x" if panel.repeat > 1 else "")

    def _node(self, number: int) -> int:
        """The node of an item, or of an entry (negative)."""
        return -1 - number if number < 0 else len(self.wiring.entries) + number

    def _edges(self) -> tuple[list[tuple[int, int]], list[str]]:
        wiring = self.wiring
        edges = [(self._node(arrow.source), self._node(arrow.target)) for arrow in wiring.arrows]
        names = [arrow.stream for arrow in wiring.arrows]
        first = len(wiring.entries) + len(wiring.panel.items)
        for place, (name, _, source) in enumerate(wiring.exits):
            edges.append((self._node(source), first + place))
            names.append(name)
        return edges, names

    def _origin(self, left: float, top: float) -> tuple[float, float]:
        slack = (self.width - 2 * _PAD - self.plan.width) / 2
        return left + _PAD + slack, top + _PAD + (_HEAD if self._title() else 0.0)

    def draw(self, left: float, top: float) -> Iterator[str]:
        """The frame, the lines, the boxes."""
        yield (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{self.width:.1f}" height="{self.height:.1f}" rx="10" '
            'fill="#fbfbfc" stroke="#cfd3da"/>'
        )
        x, y = self._origin(left, top)
        for edge, name in zip(self.plan.edges, self.names, strict=True):
            yield _path(self.plan, edge, x, y, self.colors.of(name), name)
        for node, box in zip(self.plan.nodes, self.boxes, strict=False):
            yield from _draw(box, node, x, y)

    def heading(self, left: float, top: float) -> Iterator[str]:
        """The title, which is drawn above lines that pass."""
        if self._title():
            yield f'<text class="t h" x="{left + _PAD:.1f}" y="{top + 24:.1f}">{escape(self._title())}</text>'

    def entries_at(self, left: float, top: float) -> dict[str, tuple[float, float]]:
        """The upper middle of each entry that stands at the top."""
        x, y = self._origin(left, top)
        pairs = zip(self.wiring.entries, self.plan.nodes, strict=False)
        return {entry.name: (x + node.center, y + node.y) for entry, node in pairs if node.level == 0}

    def exits_at(self, left: float, top: float) -> dict[str, tuple[float, float]]:
        """The lower middle of each exit."""
        x, y = self._origin(left, top)
        first = len(self.wiring.entries) + len(self.wiring.panel.items)
        nodes = self.plan.nodes[first : first + len(self.wiring.exits)]
        ends = zip(self.wiring.exits, nodes, strict=True)
        return {name: (x + node.center, y + node.y + node.height) for (name, _, _), node in ends}

    def joined(self, before: dict[str, tuple[float, float]], left: float, top: float) -> Iterator[str]:
        """Lines from the exits of the panel above to the entries of the same names, where nothing is in between."""
        for name, end in self.entries_at(left, top).items():
            if name in before:
                yield _curve([before[name], end], self.colors.of(name), name)


def _entry_box(entry: Entry, colors: _Colors) -> _Box:
    box = _pill(entry.name, entry.shape, colors.of(entry.name))
    box.dashed = entry.origin == "input"
    if entry.origin != "input":
        return box
    text, style, color = box.lines[0]
    box.lines = [(text if entry.name == "inputs" else f"input {text}", style, color)]
    return box


def _pill(name: str, shape: str, color: str) -> _Box:
    text = f"{name} {shape}".strip()
    return _Box([(text, "m", color)], "white", color, 11.0)


def _item_box(item: Item, colors: _Colors) -> _Box:
    fill, stroke = _FILLS[item.family]
    lines = [(item.title, "t", "")]
    lines += [(text, "", "") for text in _wrapped(item.detail)]
    lines += [(f"{name} {shape}".strip(), "m", colors.of(name)) for name, shape in item.writes]
    return _Box(lines, fill, stroke, 5.0)


def _wrapped(text: str) -> Iterator[str]:
    """A list in words, in lines of at most `_CHARS` characters where its items allow it; three lines at most."""
    items = text.split(", ") if text else []
    lines = [""]
    for place, item in enumerate(items):
        told = item if place == len(items) - 1 else f"{item},"
        if lines[-1] and len(lines[-1]) + len(told) >= _CHARS:
            lines.append("")
        lines[-1] = f"{lines[-1]} {told}".strip()
    shown = lines[:3] if len(lines) <= 3 else [*lines[:2], f"{lines[2][: _CHARS - 4]} ..."]
    return iter(line if len(line) <= 2 * _CHARS else f"{line[: 2 * _CHARS]} ..." for line in shown if line)


def _draw(box: _Box, node: Node, x: float, y: float) -> Iterator[str]:
    dash = ' stroke-dasharray="4 3"' if box.dashed else ""
    left, top = x + node.x, y + node.y
    yield (
        f'<rect class="box" x="{left:.1f}" y="{top:.1f}" width="{node.width:.1f}" height="{node.height:.1f}" '
        f'rx="{box.round:g}" fill="{box.fill}" stroke="{box.stroke}"{dash}/>'
    )
    for place, (text, style, color) in enumerate(box.lines):
        paint = f' style="fill:{color}"' if color else ""
        yield (
            f'<text class="{style}" x="{x + node.center:.1f}" y="{top + 15.5 + place * _LINE:.1f}" '
            f'text-anchor="middle"{paint}>{escape(text)}</text>'
        )


def _path(plan: Layout, edge: Edge, x: float, y: float, color: str, name: str) -> str:
    """A curve from the bottom of one box to the top of another; beside a level it runs straight."""
    source, target = plan.nodes[edge.source], plan.nodes[edge.target]
    points = [(x + source.center, y + source.y + source.height)]
    for bend in edge.bends:
        node = plan.nodes[bend]
        points += [(x + node.center, y + plan.tops[node.level])]
        points += [(x + node.center, y + plan.tops[node.level] + plan.heights[node.level])]
    points.append((x + target.center, y + target.y))
    return _curve(points, color, name)


def _curve(points: list[tuple[float, float]], color: str, name: str) -> str:
    text = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (y0 + y1) / 2
        text += f" C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    return f'<path d="{text}" stroke="{color}" marker-end="url(#a{color[1:]})"><title>{escape(name)}</title></path>'
