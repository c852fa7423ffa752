"""Routing tables: what each upstream keyword does to a draft of a spec, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from variform.dialects.x_transformers.errors import KeywordError, MissingKeywordError
from variform.errors import Problem, did_you_mean


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()
"""The default of a keyword that must be given."""


@dataclass(frozen=True)
class Route:
    """Where one keyword goes.

    Args:
        default: upstream's.
        apply: `apply(draft, value)` changes the draft.
        needs: the keyword that must be on for this one to have an effect.
        types: what the value may be, when it is not a flag; checked here only where no field of a part does it.
    """

    default: Any
    apply: Callable[[Any, Any], None]
    needs: str = ""
    types: tuple[type, ...] = ()


Table = Mapping[str, Route]


def put(name: str) -> Callable[[Any, Any], None]:
    """A route to one attribute of the draft."""

    def apply(draft: Any, value: Any) -> None:
        setattr(draft, name, value)

    return apply


def keep(name: str) -> Callable[[Any, Any], None]:
    """A route to one entry of the draft's `options`."""

    def apply(draft: Any, value: Any) -> None:
        draft.options[name] = value

    return apply


def kept(draft: Any, value: Any) -> None:
    """A route of a keyword whose value the constructor keeps itself."""


def table_of(signature: Mapping[str, tuple[Any, tuple[type, ...]]]) -> Table:
    """Routes of keywords that the constructor keeps itself: name -> (default, types)."""
    return {name: Route(default, kept, types=types) for name, (default, types) in signature.items()}


def problems_of(
    owner: str, table: Table, given: Mapping[str, Any], known: Mapping[str, Any], prefix: str = ""
) -> list[Problem]:
    """What is wrong with keywords, one by one.

    Args:
        owner: the class they were given to.
        table: its routes.
        given: keyword -> value, without the prefix.
        known: all keywords of the class, for a hint.
        prefix: what the keywords begin with for the caller.
    """
    found = []
    for name, value in given.items():
        full = prefix + name
        route = table.get(name)
        if route is None:
            found.append(Problem(full, f"{owner} has no keyword {full!r}", hint=did_you_mean(full, known)))
        elif is_default(value, route.default):
            continue
        elif not _fits(value, route):
            wanted = route.types or (type(route.default),)
            message = f"{' or '.join(kind.__name__ for kind in wanted)} is needed"
            found.append(Problem(full, message, value))
        elif route.needs and not given.get(route.needs, table[route.needs].default):
            message = f"{full} has no effect without {prefix + route.needs}"
            found.append(Problem(full, message, value, f"turn {prefix + route.needs} on, or leave it out"))
    missing = [name for name, route in table.items() if route.default is REQUIRED and name not in given]
    return found + [Problem(prefix + name, f"{owner} needs this keyword") for name in missing]


def rates_of(draft: Any, *names: str) -> list[Problem]:
    """What is wrong with the probabilities of a draft with a `prefix`."""
    given = {name: getattr(draft, name) for name in names}
    message = "a probability is needed, at least 0 and less than 1"
    return [Problem(draft.prefix + name, message, rate) for name, rate in given.items() if not 0.0 <= rate < 1.0]


def raise_any(problems: list[Problem]) -> None:
    """Raise all problems at once, if there are any."""
    once = list({str(problem): problem for problem in problems}.values())  # a keyword may be read for several layers
    if any(problem.message.endswith("needs this keyword") for problem in once):
        raise MissingKeywordError(once)
    if once:
        raise KeywordError(once)


def values_of(owner: str, table: Table, given: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords of a table with their values: those that are given, and defaults.

    Raises:
        KeywordError: unknown keywords, and values that do not fit; all at once.
    """
    raise_any(problems_of(owner, table, given, table))
    return completed(table, given)


def completed(table: Table, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and the defaults of all other keywords."""
    return {**{name: route.default for name, route in table.items()}, **given}


def apply_all(draft: Any, table: Table, given: Mapping[str, Any]) -> None:
    """Run every route of a table on a draft, in the order of the table."""
    for name, route in table.items():
        route.apply(draft, given.get(name, route.default))


def is_default(value: Any, default: Any) -> bool:
    """Whether a value says the same as the default; anything but plain data is compared by identity."""
    plain = (bool, int, float, str, tuple, list, dict)
    return value is default or (isinstance(value, plain) and isinstance(default, plain) and bool(value == default))


def _fits(value: Any, route: Route) -> bool:
    if route.types:
        return isinstance(value, route.types) and (bool in route.types or not isinstance(value, bool))
    return isinstance(value, bool) or not isinstance(route.default, bool)
