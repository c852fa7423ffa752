"""Streams of a program that nothing reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from variform.errors import Problem
from variform.stack.trace import Row


def unread(rows: Iterable[Row], inputs: Iterable[str], outputs: Iterable[str]) -> list[Problem]:
    """Inputs and writes that nothing reads; a line that is repeated is named once.

    Args:
        rows: the steps.
        inputs: names of the inputs.
        outputs: names that are asked for.

    Returns:
        problems with the paths of the rows, `inputs.NAME` for inputs.
    """
    waiting: dict[str, Row | None] = dict.fromkeys(inputs)
    found: dict[tuple[str, int, str], Problem] = {}

    def report(name: str, row: Row | None, end: str) -> None:
        if row is None:
            found["", 0, name] = Problem(f"inputs.{name}", f"the input {name!r} is never read")
        else:
            problem = Problem(f"{row.path}.into", f"{row.where}: writes {name!r}, which {end}")
            found.setdefault((row.block or row.path, row.line, name), problem)

    for row in rows:
        for name, _ in row.reads:
            waiting.pop(name, None)
        for name, _ in row.writes:
            if name in waiting:
                report(name, waiting[name], f"{row.where} overwrites before anything reads it")
            waiting[name] = row
    for name, last in _left(waiting, outputs).items():
        report(name, last, "nothing reads")
    return list(found.values())


def _left(waiting: Mapping[str, Row | None], outputs: Iterable[str]) -> dict[str, Row | None]:
    asked = frozenset(outputs)
    return {name: row for name, row in waiting.items() if name not in asked}
