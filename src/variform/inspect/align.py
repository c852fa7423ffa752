"""Which items of two lists of parts correspond: equal neighbours as one, the rest in the order that fits best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from variform.core.fields import fields_of
from variform.core.spec import Shared, Spec
from variform.stack.lines import Block, Step

LEAST = 0.35
"""Items less alike than this are one removed and one added."""


@dataclass(frozen=True)
class Run:
    """Equal neighbours in a list.

    Args:
        spec: what stands there.
        start: the place of the first.
        count: how many.
    """

    spec: Spec
    start: int
    count: int

    @property
    def places(self) -> range:
        """Their places."""
        return range(self.start, self.start + self.count)


def runs(items: Sequence[Any]) -> list[Run]:
    """A list of parts with equal neighbours together."""
    found: list[Run] = []
    for place, item in enumerate(map(plain, items)):
        if not isinstance(item, Spec):
            continue
        last = found[-1] if found else None
        if last is not None and last.start + last.count == place and last.spec == item:
            found[-1] = Run(item, last.start, last.count + 1)
        else:
            found.append(Run(item, place, 1))
    return found


def matched(a: Sequence[Any], b: Sequence[Any]) -> Iterator[tuple[Run | None, Run | None]]:
    """Pairs of two lists of parts, in order; None where the other list has nothing of the kind.

    In lists of one length, equal neighbours of one are told apart where those of the other differ.
    """
    left, right = runs(a), runs(b)
    if len(a) == len(b) and len(left) != len(right):
        starts = sorted({run.start for run in (*left, *right)})
        left, right = _cut(left, starts), _cut(right, starts)
    return aligned(left, right)


def _cut(found: Sequence[Run], starts: Sequence[int]) -> list[Run]:
    pieces = []
    for run in found:
        inner = [run.start, *(s for s in starts if run.start < s < run.start + run.count), run.start + run.count]
        pieces += [Run(run.spec, low, high - low) for low, high in pairwise(inner)]
    return pieces


def plain(item: Any) -> Any:
    """A part's description, shared or not."""
    return item.spec if isinstance(item, Shared) else item


def aligned(a: Sequence[Run], b: Sequence[Run]) -> Iterator[tuple[Run | None, Run | None]]:
    """Pairs in order; None where the other list has nothing of the kind."""
    start = 0
    while start < min(len(a), len(b)) and a[start].spec == b[start].spec:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end].spec == b[-1 - end].spec:
        end += 1
    yield from zip(a[:start], b[:start], strict=True)
    middle_a, middle_b = a[start : len(a) - end], b[start : len(b) - end]
    yield from _best(middle_a, middle_b, [[alike(x.spec, y.spec) for y in middle_b] for x in middle_a])
    yield from zip(a[len(a) - end :], b[len(b) - end :], strict=True)


def _best(
    a: Sequence[Run], b: Sequence[Run], likeness: Sequence[Sequence[float]]
) -> Iterator[tuple[Run | None, Run | None]]:
    """The alignment with the largest sum of likenesses."""
    best = [[0.0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            pair = likeness[i][j] + best[i + 1][j + 1] if likeness[i][j] >= LEAST else 0.0
            best[i][j] = max(pair, best[i + 1][j], best[i][j + 1])
    i = j = 0
    while i < len(a) or j < len(b):
        both = i < len(a) and j < len(b)
        if both and likeness[i][j] >= LEAST and best[i][j] == likeness[i][j] + best[i + 1][j + 1]:
            yield a[i], b[j]
            i, j = i + 1, j + 1
        elif i < len(a) and (j == len(b) or best[i][j] == best[i + 1][j]):
            yield a[i], None
            i += 1
        else:
            yield None, b[j]
            j += 1


def alike(a: Spec, b: Spec) -> float:
    """How much two parts have in common: 0 for different kinds, 1 for equal ones."""
    if a == b:
        return 1.0
    if a.kind != b.kind:
        return 0.0
    if a.part is Step and b.part is Step:
        return 0.95 * _steps(a, b)
    if a.part is Block and b.part is Block:
        named = 0.1 if a["label"] == b["label"] else 0.0
        return named + 0.85 * _ratio(_names(a["lines"]), _names(b["lines"]))
    known = {f.name: f for f in fields_of(a.part)}
    common = [f for f in fields_of(b.part) if f.name in known]
    shares = [_values(a.get(f.name), b.get(f.name)) for f in common]
    share = sum(shares) / len(shares) if shares else 1.0
    return 0.4 + 0.55 * share if a.part is b.part else 0.4 * share


def _steps(a: Spec, b: Spec) -> float:
    op_a, op_b = plain(a["op"]), plain(b["op"])
    same = 0.5 if op_a.part is op_b.part else 0.2 if op_a.kind == op_b.kind and op_a.kind != "op" else 0.0
    equal = 0.1 if op_a == op_b else 0.0
    streams = [_ratio(a[field], b[field]) for field in ("reads", "into")]
    named = 0.2 if a["label"] == b["label"] else 0.0
    return same + equal + named + 0.1 * sum(streams)


def _values(a: Any, b: Any) -> float:
    a, b = plain(a), plain(b)
    if isinstance(a, Spec) and isinstance(b, Spec):
        return alike(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple) and any(isinstance(plain(item), Spec) for item in (*a, *b)):
        return _ratio(_names(a), _names(b))
    return 1.0 if a is b or _equal(a, b) else 0.0


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, (int, float, str, tuple, type(None))) and type(a) is type(b) and bool(a == b)


def _names(items: Sequence[Any]) -> list[Callable[..., Any] | str]:
    """What tells the items of a list apart at a glance."""
    specs = [item for item in map(plain, items) if isinstance(item, Spec)]
    return [f"{spec['label']} {plain(spec['op']).name}" if spec.part is Step else spec.name for spec in specs]


def _ratio(a: Sequence[Any], b: Sequence[Any]) -> float:
    return SequenceMatcher(None, list(a), list(b), autojunk=False).ratio()
