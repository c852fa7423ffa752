"""Places for the boxes of a panel: levels from top to bottom, few crossings, nothing on top of anything else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

GAP_X, GAP_Y = 22.0, 34.0
_LANE = 4.0
"""Width of a line that passes by a level."""

_LANE_GAP = 9.0
"""Distance between two of them."""


@dataclass
class Node:
    """A rectangle to be placed, or a bend of a line (no height).

    Args:
        width: in pixels.
        height: in pixels; 0 for a bend.
        level: counted from the top.
        x: left edge.
        y: upper edge.
    """

    width: float
    height: float
    level: int = 0
    x: float = 0.0
    y: float = 0.0

    @property
    def center(self) -> float:
        """Middle of its width."""
        return self.x + self.width / 2


@dataclass
class Edge:
    """A line from one node to another through the bends between them."""

    source: int
    target: int
    bends: list[int] = field(default_factory=list)


@dataclass
class Layout:
    """Nodes with their places, and the lines with their bends (which are nodes too)."""

    nodes: list[Node]
    edges: list[Edge]
    width: float
    height: float
    tops: tuple[float, ...]
    heights: tuple[float, ...]


def layout(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], most: float) -> Layout:
    """Place nodes so that lines run downwards.

    Args:
        sizes: width and height of each node, in an order in which every line goes from an earlier to a later one.
        edges: from, to.
        most: the widest it may become, if one node a level can do that.
    """
    room = most
    while True:
        placed = _layout(sizes, edges, room)
        if placed.width <= most or room <= max(width for width, _ in sizes):
            return placed
        room *= 0.8


def _layout(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], room: float) -> Layout:
    nodes = [Node(width, height) for width, height in sizes]
    _assign_levels(nodes, edges, room)
    bends: dict[tuple[int, int], int] = {}
    lines = [_with_bends(nodes, source, target, bends) for source, target in edges]
    pairs = list(dict.fromkeys(pair for line in lines for pair in _pairs(line)))
    levels: list[list[int]] = [[] for _ in range(1 + max(node.level for node in nodes))]
    for index, node in enumerate(nodes):
        levels[node.level].append(index)
    _order(levels, pairs, len(nodes))
    _place_x(nodes, levels, pairs)
    heights = tuple(max(nodes[i].height for i in level) for level in levels)
    tops, y = [], 0.0
    for height in heights:
        tops.append(y)
        y += height + GAP_Y
    for node in nodes:
        node.y = tops[node.level] + (heights[node.level] - node.height) / 2
    return Layout(nodes, lines, max(n.x + n.width for n in nodes), y - GAP_Y, tuple(tops), heights)


def _assign_levels(nodes: list[Node], edges: Sequence[tuple[int, int]], room: float) -> None:
    """Each node below all that it reads, as high as there is room; what reads nothing goes just above its reader."""
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for source, target in edges:
        above.setdefault(target, []).append(source)
        below.setdefault(source, []).append(target)
    used: dict[int, float] = {}

    def put(index: int, level: int, step: int) -> None:
        width = nodes[index].width + GAP_X
        while used.get(level, 0.0) and used.get(level, 0.0) + width > room:
            level += step
        nodes[index].level = level
        used[level] = used.get(level, 0.0) + width

    for index in range(len(nodes)):
        if index in above:
            put(index, 1 + max(nodes[i].level for i in above[index]), 1)
    for index in range(len(nodes)):
        if index not in above:
            put(index, min((nodes[i].level for i in below.get(index, ())), default=1) - 1, -1)
    lowest = min(node.level for node in nodes)
    for node in nodes:
        node.level -= lowest
    used_levels = {level: place for place, level in enumerate(sorted({node.level for node in nodes}))}
    for node in nodes:
        node.level = used_levels[node.level]


def _with_bends(nodes: list[Node], source: int, target: int, bends: dict[tuple[int, int], int]) -> Edge:
    """Give a line that passes levels a bend in each; lines of one source share them.

    Args:
        nodes: where new bends are put.
        source: where the line starts.
        target: where it ends.
        bends: those that exist, by source and level.
    """
    line = Edge(source, target)
    for level in range(nodes[source].level + 1, nodes[target].level):
        if (source, level) not in bends:
            bends[source, level] = len(nodes)
            nodes.append(Node(_LANE, 0.0, level))
        line.bends.append(bends[source, level])
    return line


def _pairs(line: Edge) -> list[tuple[int, int]]:
    path = [line.source, *line.bends, line.target]
    return list(itertools.pairwise(path))


def _order(levels: list[list[int]], pairs: Sequence[tuple[int, int]], count: int) -> None:
    """Sort each level by the mean place of the neighbours above, then below, a few times."""
    up: list[list[int]] = [[] for _ in range(count)]
    down: list[list[int]] = [[] for _ in range(count)]
    for source, target in pairs:
        down[source].append(target)
        up[target].append(source)
    best, fewest = [list(level) for level in levels], _crossings(levels, pairs)
    for sweep in range(12):
        neighbours = up if sweep % 2 == 0 else down
        for level in levels if sweep % 2 == 0 else reversed(levels):
            place = {node: i for each in levels for i, node in enumerate(each)}
            means = {
                node: sum(place[n] for n in neighbours[node]) / len(neighbours[node])
                if neighbours[node]
                else place[node]
                for node in level
            }
            level.sort(key=lambda node: means[node])
        crossings = _crossings(levels, pairs)
        if crossings < fewest:
            best, fewest = [list(level) for level in levels], crossings
    for level, order in zip(levels, best, strict=True):
        level[:] = order


def _crossings(levels: list[list[int]], pairs: Sequence[tuple[int, int]]) -> int:
    level_of = {node: i for i, level in enumerate(levels) for node in level}
    place = {node: i for level in levels for i, node in enumerate(level)}
    total = 0
    for i in range(len(levels)):
        spans = [(place[a], place[b]) for a, b in pairs if level_of[a] == i]
        total += sum((a - c) * (b - d) < 0 for k, (a, b) in enumerate(spans) for c, d in spans[k + 1 :])
    return total


def _place_x(nodes: list[Node], levels: list[list[int]], pairs: Sequence[tuple[int, int]]) -> None:
    """Bring each node near the mean of its neighbours, keeping order and distance within a level.

    Boxes stand below boxes, and long lines run straight, before lines stand below boxes.
    """
    near: list[list[tuple[int, float]]] = [[] for _ in nodes]
    for source, target in pairs:
        bends = (nodes[source].height == 0) + (nodes[target].height == 0)
        pull = (3.0, 0.4, 6.0)[bends]
        near[source].append((target, pull))
        near[target].append((source, pull))
    for level in levels:
        for index, x in zip(level, _shifts([nodes[i] for i in level]), strict=True):
            nodes[index].x = x
    for sweep in range(400):
        before = [node.x for node in nodes]
        for level in levels if sweep % 2 == 0 else reversed(levels):
            pulls = [sum(pull for _, pull in near[i]) for i in level]
            wanted = [
                sum(nodes[n].center * pull for n, pull in near[i]) / total if total else nodes[i].center
                for i, total in zip(level, pulls, strict=True)
            ]
            _settle([nodes[i] for i in level], wanted, pulls)
        if sweep % 2 and max(abs(node.x - x) for node, x in zip(nodes, before, strict=True)) < 0.05:
            break
    left = min(node.x for node in nodes)
    for node in nodes:
        node.x -= left


def _settle(level: list[Node], wanted: list[float], pulls: list[float]) -> None:
    """The places closest to the wanted centres that keep order and distance (pool adjacent violators)."""
    shifts = _shifts(level)
    blocks: list[tuple[float, float, int]] = []
    for node, centre, shift, pull in zip(level, wanted, shifts, pulls, strict=True):
        weight = pull or 1.0
        mean, count = centre - node.width / 2 - shift, 1
        while blocks and blocks[-1][0] > mean:
            other, other_weight, other_count = blocks.pop()
            mean = (mean * weight + other * other_weight) / (weight + other_weight)
            weight, count = weight + other_weight, count + other_count
        blocks.append((mean, weight, count))
    places = [mean for mean, _, count in blocks for _ in range(count)]
    for node, place, shift in zip(level, places, shifts, strict=True):
        node.x = place + shift


def _shifts(level: list[Node]) -> list[float]:
    """The left edges of nodes that stand as close as they may."""
    shifts, x = [], 0.0
    for node, following in zip(level, [*level[1:], None], strict=True):
        shifts.append(x)
        lanes = following is not None and node.height == 0 == following.height
        x += node.width + (_LANE_GAP if lanes else GAP_X)
    return shifts
