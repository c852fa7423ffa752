"""Expressions in the keys of module types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.dialects.configaformers.modules import Key, ModuleType
from variform.dialects.configaformers.scope import Scope, has_text
from variform.errors import ConfigError, Problem

_NUMBERS = (int, float, bool)


def evaluated(config: Mapping[Any, Any], kind: ModuleType, scope: Scope) -> tuple[dict[Any, Any], list[Problem]]:
    """A module's dict with its expressions evaluated, and what is wrong with them (paths are its keys).

    A key that takes numbers and no text holds an expression where it holds text; one that takes both (an index or the
    name of a size) has the sizes of the program filled in. Names of streams are never touched.
    """
    found: dict[Any, Any] = {}
    problems: list[Problem] = []
    for key, value in config.items():
        entry = kind.keys.get(kind.aliases.get(key, key))
        found[key] = value
        if entry is None or not has_text(value):
            continue
        try:
            found[key] = _evaluated(str(key), value, entry, scope)
        except ConfigError as error:
            problems += [problem.below(str(key)) for problem in error.problems]
    return found, problems


def _evaluated(key: str, value: Any, entry: Key, scope: Scope) -> Any:
    wanted = frozenset(number for number in _NUMBERS if number in entry.types)
    if isinstance(value, str):
        if str not in entry.types:
            return scope.number(value, wanted) if wanted else value
        return scope.size(value) if int in entry.types else value
    names = key.startswith(("input_", "output_"))
    return value if names or entry.choices else scope.filled(value, wanted or frozenset({int}))
