"""The table of a program: one line a step, under the heading of its block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from variform.core.fields import fields_of
from variform.stack.trace import Row


@dataclass(frozen=True)
class Table:
    """The steps of a program; `str` gives the text, headings like `Block #2, 12x` over the lines of the first copy.

    Copies of a block that differ, in shapes, steps or settings, are shown once a kind, with the repeats that are so.

    Args:
        rows: all steps, copies included.
        printed: what stands in the text for each of the rows, where a dialect has its own names for sizes.
    """

    rows: tuple[Row, ...]
    printed: tuple[Row, ...] = ()

    def __str__(self) -> str:
        return "\n\n\n".join(self._texts())

    def _texts(self) -> Iterator[str]:
        texts = {row.path: str(row) for row in self.printed or self.rows}
        for label, rows in groupby(self.rows, key=lambda row: row.block):
            kinds = _kinds([list(copy) for _, copy in groupby(rows, key=lambda row: row.repeat)])
            for copies in kinds:
                part = "" if len(kinds) == 1 else f" (repeat {ranges([copy[0].repeat for copy in copies])})"
                heading = [f"{label}{part}, {len(copies)}x"] if label else []
                yield "\n".join(heading + [texts[row.path] + _settings(row, kinds) for row in copies[0]])

    def to_json(self) -> list[dict[str, Any]]:
        """The rows as plain data."""
        return [
            {
                "path": row.path,
                "block": row.block,
                "repeat": row.repeat,
                "line": row.line,
                "name": row.name,
                "reads": {name: [_plain(size) for size in shape] for name, shape in row.reads},
                "writes": {name: [_plain(size) for size in shape] for name, shape in row.writes},
            }
            for row in self.rows
        ]


def _kinds(copies: Sequence[list[Row]]) -> list[list[list[Row]]]:
    """The copies of a block, equal ones together, in the order of the first of each kind."""
    kinds: dict[tuple[Any, ...], list[list[Row]]] = {}
    for copy in copies:
        kinds.setdefault(tuple((str(row), row.op) for row in copy), []).append(copy)
    return list(kinds.values())


def _settings(row: Row, kinds: Sequence[list[list[Row]]]) -> str:
    """The settings of a step that other kinds of copies have otherwise, where their shapes do not tell them apart."""
    others = [other.op for copies in kinds for other in copies[0] if str(other) == str(row) and other.line == row.line]
    named = [
        f"{f.name} = {row.op.get(f.name)!r}"
        for f in fields_of(row.op.part)
        if any(other.part is row.op.part and other.get(f.name) != row.op.get(f.name) for other in others)
    ]
    return f"; {', '.join(named)}" if named else ""


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as a reader writes them: `1, 3-5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _plain(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)
