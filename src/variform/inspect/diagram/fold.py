"""Repetition in a list: equal items in a row, and groups of different items that come again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """`count` items from `start` on that come `times` times in a row."""

    start: int
    count: int
    times: int

    @property
    def end(self) -> int:
        """The place after the last of them."""
        return self.start + self.count * self.times


def fold(items: Sequence[Any]) -> list[Run]:
    """Cut a list into runs, each as long as can be; of two ways to say the same, the one with fewer items."""
    runs: list[Run] = []
    start = 0
    while start < len(items):
        candidates = [Run(start, count, _times(items, start, count)) for count in _counts(len(items) - start)]
        best = max(candidates, key=lambda run: (run.end if run.times > 1 else start + 1, -run.count))
        if best.times == 1:
            best = Run(start, 1, 1)
        runs.append(best)
        start = best.end
    return runs


def _counts(left: int) -> range:
    return range(1, max(2, left // 2 + 1))


def _times(items: Sequence[Any], start: int, count: int) -> int:
    group = list(items[start : start + count])
    times = 1
    while list(items[start + times * count : start + (times + 1) * count]) == group:
        times += 1
    return times


def heading(runs: Sequence[Run], run: Run, what: str) -> str:
    """Which of several a run shows: `what 3`, `what 3 to 8`, `what 3 to 8 in turns of 2`; nothing for all equal."""
    first, last = run.start + 1, run.end
    if len(runs) == 1 and run.count == 1:
        return ""
    turns = f" in turns of {run.count}" if run.count > 1 else ""
    return f"{what} {first}" if first == last else f"{what}s {first} to {last}{turns}"
