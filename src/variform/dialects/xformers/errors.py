"""Errors of the dialect: configuration errors that are also what upstream raised, so that old `except` clauses work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from variform.errors import ConfigError, Problem, ShapeError


@dataclass(frozen=True)
class Wrong(Problem):
    """One problem, with the built-in error that upstream raised for it.

    Args:
        like: `KeyError`, `TypeError`, `AssertionError`, or None where upstream raised nothing or a `ValueError`.
    """

    like: type[Exception] | None = None

    def below(self, path: str) -> Wrong:
        """The same problem, seen from further up."""
        return replace(self, path=join(path, self.path))


class ConfigKeyError(ConfigError, KeyError):
    """A name that is not registered."""

    __str__ = Exception.__str__  # KeyError would show the repr of its message


class ConfigTypeError(ConfigError, TypeError):
    """A key that is missing, unknown or of the wrong type."""


class ConfigAssertionError(ConfigError, AssertionError):
    """A setting that contradicts another."""


class ConfigNotImplementedError(ConfigError, NotImplementedError):
    """A choice that does not exist."""


class MixedConfigError(ConfigError, AssertionError, KeyError, TypeError):
    """Several problems, for which upstream raised different errors."""

    __str__ = Exception.__str__


class CallError(ShapeError, AssertionError):
    """A call asks for what the attention cannot do, or its tensors do not fit."""


_CLASSES: dict[type[Exception], type[ConfigError]] = {
    KeyError: ConfigKeyError,
    TypeError: ConfigTypeError,
    AssertionError: ConfigAssertionError,
}


def config_error(problems: Iterable[Problem]) -> ConfigError:
    """The error that reports all `problems`, of the class that upstream's callers expect."""
    found = tuple(problems)
    likes = {problem.like for problem in found if isinstance(problem, Wrong) and problem.like is not None}
    if not likes:
        return ConfigError(found)
    return MixedConfigError(found) if len(likes) > 1 else _CLASSES[likes.pop()](found)


def wrongs(error: ConfigError, path: str = "") -> list[Wrong]:
    """The problems of an error that was raised further down, with their paths from here."""
    like = next((like for like, cls in _CLASSES.items() if type(error) is cls), None)
    found = []
    for problem in error.problems:
        own = getattr(problem, "like", None) or like
        found.append(Wrong(join(path, problem.path), problem.message, problem.value, problem.hint, own))
    return found


@contextmanager
def below(path: str) -> Iterator[None]:
    """Errors of configurations raised inside have their paths below `path`."""
    try:
        yield
    except ConfigError as error:
        raise config_error(wrongs(error, path)) from error


def join(path: str, step: str) -> str:
    """A dotted path."""
    return f"{path}.{step}" if path and step else path or step
