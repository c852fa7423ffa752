"""Streams that the parts of a whole model's steps need and are not given."""

from __future__ import annotations

from collections.abc import Iterable

from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.parts.kinds import StreamPart
from variform.stack.rows import Row


def missing_streams(rows: Iterable[Row]) -> list[Problem]:
    """Streams that a part of a step needs (`in_streams`) and the step does not name, where nothing else gives them.

    Args:
        rows: the steps of a whole model; of copies of a block that lack the same, the first is told.
    """
    found: dict[tuple[str, int, str], Problem] = {}
    for row in rows:
        if not issubclass(row.op.part, StreamPart):
            continue
        named = {name for name, _ in row.reads[1:]}
        published = {name for _, part in row.op.walk() for name in part.part.publishes(part.args)}
        for name in sorted(_needed(row.op) - named - published):
            message = f"{row.where}: needs the stream {name!r}, and reads {', '.join(name for name, _ in row.reads)}"
            problem = Problem(f"{row.path}.reads", message, hint=f"name it beside the first: ['x', {name!r}]")
            found.setdefault((row.block, row.line, name), problem)
    return list(found.values())


def _needed(op: Spec) -> frozenset[str]:
    """The streams that a part, or a part inside it, declares."""
    declared = frozenset(op.part.in_streams(op.args)) if issubclass(op.part, StreamPart) else frozenset()
    if declared:
        return declared
    inner = (described(child) for _, _, child in op.children())
    return frozenset().union(*(_needed(child) for child in inner if isinstance(child, Spec)))
