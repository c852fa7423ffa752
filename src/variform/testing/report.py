"""Named checks and what they found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from variform.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from variform.testing.case import Case

Body = Callable[["Case"], None]


class NotApplicable(Exception):
    """The check has no meaning for this part; the message says why."""


@dataclass(frozen=True)
class Check:
    """One named property of a part.

    Args:
        name: by which it is run alone.
        body: raises AssertionError where the part does not have the property.
        slow: whether it takes seconds.
    """

    name: str
    body: Body
    slow: bool = False

    @property
    def about(self) -> str:
        """What the property is, in one line."""
        return (self.body.__doc__ or "").split("\n", 1)[0]


@dataclass(frozen=True)
class Result:
    """What one check found on one part.

    Args:
        part: `kind/name` of the part, with the variant in brackets.
        check: the name of the check.
        status: "passed", "failed" or "skipped".
        message: why it failed or was skipped.
        seconds: how long it took.
        error: the exception behind a failure.
    """

    part: str
    check: str
    status: Literal["passed", "failed", "skipped"]
    message: str = ""
    seconds: float = 0.0
    error: BaseException | None = None

    @property
    def ok(self) -> bool:
        """Whether it did not fail."""
        return self.status != "failed"

    def __str__(self) -> str:
        return f"{self.part} {self.check}: {self.status}" + (f": {self.message}" if self.message else "")


COMPARING = frozenset({"state_dict", "padding", "packed", "cache", "compile", "copies", "precision"})
"""Checks that compare the results of two calls."""

_checks: dict[str, Check] = {}


def check(name: str, *, slow: bool = False) -> Callable[[Body], Body]:
    """Add a check to the suite."""

    def decorate(body: Body) -> Body:
        _checks[name] = Check(name, body, slow)
        return body

    return decorate


def checks() -> tuple[Check, ...]:
    """All checks, in the order in which they run."""
    return tuple(_checks.values())


def find(name: str) -> Check:
    """The check of a name.

    Raises:
        ConfigError: there is none, with the nearest names.
    """
    if name not in _checks:
        raise ConfigError(f"there is no check {name!r}", hint=did_you_mean(name, _checks))
    return _checks[name]


def run(one: Check, case: Case) -> Result:
    """Run one check on one case; what it raises becomes the result."""
    start = time.perf_counter()
    try:
        if case.sample.random and one.name in COMPARING:
            raise NotApplicable("its results are drawn anew in every call")
        one.body(case)
    except NotApplicable as reason:
        return Result(case.label, one.name, "skipped", str(reason), time.perf_counter() - start)
    except Exception as error:
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return Result(case.label, one.name, "failed", f"{kind}{error}", time.perf_counter() - start, error)
    return Result(case.label, one.name, "passed", "", time.perf_counter() - start)
