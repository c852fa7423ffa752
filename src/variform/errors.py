"""The errors of the library: every one names where, what, why and the remedy.

`ConfigError` is about a description (a spec, a file, an override), `ShapeError` about tensors at run time,
`BackendError` about an implementation that was asked for and cannot serve. They derive from the built-in error a
Python user would expect, so that `except ValueError` keeps working.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any


class _Unset:
    """Stands for "no value"; there is one, also after pickling."""

    def __reduce__(self) -> str:
        return "_UNSET"


_UNSET = _Unset()


_MOST_TRIED = 100_000
"""Divisors that are tried for a hint, so that an absurd size does not make the message wait."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a description.

    Args:
        path: where, dotted: `stacks.0.layers.3.attention.heads`; empty for the root.
        message: the rule that is broken, in words.
        value: the offending value, if there is one to show.
        hint: what to write instead.
    """

    path: str
    message: str
    value: Any = _UNSET
    hint: str = ""

    @property
    def has_value(self) -> bool:
        """Whether there is an offending value to show."""
        return self.value is not _UNSET

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        value = f" (got {_short(self.value)})" if self.has_value else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{where}{self.message}{value}{hint}"

    def below(self, path: str) -> Problem:
        """The same problem, seen from a tree in which this one hangs at `path`."""
        return replace(self, path=join_path(path, self.path))

    def to_json(self) -> dict[str, Any]:
        """The problem as plain data, for programs."""
        data: dict[str, Any] = {"path": self.path, "message": self.message}
        if self.has_value:
            data["value"] = _short(self.value)
        if self.hint:
            data["hint"] = self.hint
        return data


class VariformError(Exception):
    """Base of all errors that the library raises on purpose."""


class ConfigError(VariformError, ValueError):
    """A description is wrong; all its problems are reported at once.

    Args:
        problems: one message, or all problems found.
        path: where, when a single message is given.
        value: the offending value, when a single message is given.
        hint: the remedy, when a single message is given.
    """

    def __init__(
        self, problems: str | Problem | Iterable[Problem], *, path: str = "", value: Any = _UNSET, hint: str = ""
    ) -> None:
        if isinstance(problems, str):
            problems = Problem(path, problems, value, hint)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(self._text())

    @property
    def path(self) -> str:
        """The path of the first problem."""
        return self.problems[0].path if self.problems else ""

    @property
    def value(self) -> Any:
        """The offending value of the first problem, or None."""
        first = self.problems[0] if self.problems else None
        return first.value if first is not None and first.has_value else None

    @property
    def hint(self) -> str:
        """The remedy of the first problem."""
        return self.problems[0].hint if self.problems else ""

    def _text(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"{len(self.problems)} problems:"]
        return "\n".join(lines + [f"  {problem}" for problem in self.problems])

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.problems,))


class ShapeError(VariformError, ValueError):
    """Tensors do not fit: a size, a dtype or a range is wrong."""


class TokenIdError(ShapeError, IndexError):
    """An id is no token of the vocabulary; torch raises an `IndexError` there."""


class BackendError(VariformError, RuntimeError):
    """An implementation was asked for by name and cannot compute this call; the message says why."""


def join_path(path: str, step: str) -> str:
    """A dotted path and one step below it; either may be empty."""
    return f"{path}.{step}" if path and step else path or step


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known spelling, or all known ones when none is near.

    Args:
        name: what was written.
        known: what could have been written.
    """
    options: Sequence[str] = sorted(set(known))
    lowered = {option.lower(): option for option in options}
    near = [lowered[match] for match in difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.6)]
    if near:
        return "did you mean " + " or ".join(repr(option) for option in near) + "?"
    if not options:
        return "none is known"
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"known: {shown}"


def nearest_multiples(value: int, divisor: int) -> str:
    """A hint that names the nearest positive multiples of `divisor` around `value`."""
    below = value // divisor * divisor
    options = [option for option in (below, below + divisor) if option > 0]
    return "nearest: " + " or ".join(str(option) for option in options)


def nearest_divisors(value: int, wanted: int) -> str:
    """A hint that names the divisors of `value` nearest to `wanted`."""
    small = [d for d in range(1, min(math.isqrt(value), _MOST_TRIED) + 1) if value % d == 0]
    divisors = sorted({*small, *(value // d for d in small)})
    below = [d for d in divisors if d < wanted][-1:]
    above = [d for d in divisors if d > wanted][:1]
    return "nearest that divide it: " + " or ".join(str(d) for d in below + above)


def _short(value: Any, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
