"""The dialect's error."""

from __future__ import annotations

from variform.errors import ConfigError


class ConfigaformersError(ConfigError, AssertionError, KeyError, TypeError):
    """A model config is wrong; all its problems are reported at once.

    It is also each of the errors with which the original fails: an assertion for wrong sizes and types, a KeyError
    for unknown streams and missing keys, a TypeError for unknown module types.
    """

    def __str__(self) -> str:
        return self._text()
