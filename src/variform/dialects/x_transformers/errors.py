"""Errors of this dialect: ours, and at once what upstream raises in the same place."""

from __future__ import annotations

from variform.errors import ConfigError, ShapeError


class KeywordError(ConfigError, AssertionError, TypeError):
    """A keyword is unknown, not supported, of a wrong value, or contradicts another."""


class MissingKeywordError(KeywordError, KeyError):
    """A keyword that must be given is not."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


class InputError(ShapeError, AssertionError, TypeError, IndexError, RuntimeError):
    """What a model was called with does not fit it; upstream asserts it, or torch fails on it in one of these ways."""
