"""The table of a program: one line a step, under the heading of its block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from variform.stack.trace import Row


@dataclass(frozen=True)
class Table:
    """The steps of a program; `str` gives the text, headings like `Block #2, 12x` over the lines of the first copy.

    Copies of a block whose shapes differ from the copy before are shown again.

    Args:
        rows: all steps, copies included.
    """

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return "\n\n\n".join(self._texts())

    def _texts(self) -> Iterator[str]:
        for label, copies in self._blocks():
            starts = [i for i, copy in enumerate(copies) if i == 0 or _lines(copy) != _lines(copies[i - 1])]
            for start, end in zip(starts, [*starts[1:], len(copies)], strict=True):
                part = "" if len(starts) == 1 else f" (from repeat {start + 1})"
                heading = [f"{label}{part}, {end - start}x"] if label else []
                yield "\n".join(heading + _lines(copies[start]))

    def _blocks(self) -> list[tuple[str, list[list[Row]]]]:
        """The rows by heading, and there by copy."""
        blocks: list[tuple[str, list[list[Row]]]] = []
        last: tuple[str, int] | None = None
        for row in self.rows:
            if last is None or row.block != last[0]:
                blocks.append((row.block, [[]]))
            elif row.repeat != last[1]:
                blocks[-1][1].append([])
            blocks[-1][1][-1].append(row)
            last = (row.block, row.repeat)
        return blocks

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


def _lines(rows: list[Row]) -> list[str]:
    return [str(row) for row in rows]


def _plain(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)
