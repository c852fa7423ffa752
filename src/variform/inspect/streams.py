"""Streams of programs that have another name in another program, and no other difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from variform.core.spec import Shared, Spec
from variform.inspect.align import matched, plain
from variform.stack.lines import Step
from variform.stack.program import ProgramModel


def renames(a: Spec, b: Spec) -> dict[str, str]:
    """Names of the first program and what they are called in the second; empty for other models.

    A stream was renamed where the old name is gone, the new one was not there before, and all lines that correspond
    have the one for the other.
    """
    if a.part is not ProgramModel or b.part is not ProgramModel:
        return {}
    old, new = set(_names(a)), set(_names(b))
    found: dict[str, set[str]] = {}
    for left, right in _pairs(a["lines"], b["lines"]):
        for field in ("reads", "into"):
            if len(left[field]) == len(right[field]):
                for before, after in zip(left[field], right[field], strict=True):
                    found.setdefault(before, set()).add(after)
    chosen = {
        before: next(iter(after))
        for before, after in found.items()
        if len(after) == 1 and before not in new and not after & old
    }
    return {before: after for before, after in chosen.items() if list(chosen.values()).count(after) == 1}


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A program, or something of it, with other names of streams."""
    if not names:
        return value
    if isinstance(value, Shared):
        return Shared(value.name, renamed(value.spec, names))
    if isinstance(value, Spec):
        changed = {key: _field(value, key, item, names) for key, item in value.args.items()}
        return Spec(value.part, changed)
    return tuple(renamed(item, names) for item in value) if isinstance(value, tuple) else value


def _field(spec: Spec, key: str, value: Any, names: Mapping[str, str]) -> Any:
    if (spec.part is Step and key in ("reads", "into")) or (
        spec.part is ProgramModel and key in ("outputs", "unasked")
    ):
        return tuple(names.get(name, name) for name in value)
    if spec.part is ProgramModel and key == "inputs":
        return {names.get(name, name): shape for name, shape in value.items()}
    return renamed(value, names) if key in ("lines",) else value


def _names(value: Any) -> Iterator[str]:
    value = plain(value)
    if isinstance(value, tuple):
        for item in value:
            yield from _names(item)
    elif isinstance(value, Spec) and value.part is Step:
        yield from (*value["reads"], *value["into"])
    elif isinstance(value, Spec):
        yield from (*value.get("inputs", ()), *value.get("outputs", ()))
        yield from _names(value.get("lines", ()))


def _pairs(a: tuple[Any, ...], b: tuple[Any, ...]) -> Iterator[tuple[Spec, Spec]]:
    """Lines that correspond."""
    for left, right in matched(a, b):
        if left is None or right is None or left.spec.part is not right.spec.part:
            continue
        if left.spec.part is Step:
            yield left.spec, right.spec
        else:
            yield from _pairs(left.spec["lines"], right.spec["lines"])
