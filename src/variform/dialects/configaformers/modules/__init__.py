"""The module types: their keys with types and defaults, and the step that each one is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from variform.core.spec import Spec
from variform.dialects.configaformers.modules.attention import ATTENTION
from variform.dialects.configaformers.modules.keys import REQUIRED, Key, ModuleType
from variform.dialects.configaformers.modules.sequence import SEQUENCE
from variform.dialects.configaformers.modules.streams import STREAMS
from variform.dialects.configaformers.modules.tokenwise import TOKENWISE, norm_spec
from variform.errors import Problem, did_you_mean
from variform.stack.lines import Step

__all__ = ["REQUIRED", "TYPES", "Key", "ModuleType", "norm_spec", "step_of"]

TYPES: dict[str, ModuleType] = {**TOKENWISE, **ATTENTION, **STREAMS, **SEQUENCE}
"""All module types by name."""


def step_of(config: Any) -> tuple[Spec, list[Problem]]:
    """The step that a module's dict describes, and what is wrong with the dict (paths are its keys).

    A dict with problems gives a step without an op, so that what follows it can still be looked at.
    """
    if not isinstance(config, Mapping):
        return Step.spec(), [Problem("", "a module is a dict: {'type': ..., ...}", config)]
    name = config.get("type")
    if not isinstance(name, str):
        near = next((key for key in config if str(key).strip().lower() == "type" and key != "type"), None)
        hint = "known: " + ", ".join(TYPES) if near is None else f"the key {near!r} is written 'type'"
        problem = Problem("type", f"a module needs a type, and has {name!r}", hint=hint)
        return _unknown(config), [problem]
    if name.lower() not in TYPES:
        return _unknown(config), [Problem("type", "there is no such module type", name, did_you_mean(name, TYPES))]
    kind = TYPES[name.lower()]
    given, problems = _given(config, kind, name)
    if not problems and kind.check is not None:
        problems = kind.check(given)
    if problems:
        return _unknown(config), problems
    settings = {key: given.get(key, entry.default) for key, entry in kind.keys.items()}
    op, reads, into = kind.step(settings)
    return Step.spec(op=op, reads=reads, into=into, label=name), []


def _given(config: Mapping[Any, Any], kind: ModuleType, name: str) -> tuple[dict[str, Any], list[Problem]]:
    """The keys that are given, under one spelling."""
    given: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in config.items():
        known = kind.aliases.get(key, key)
        if key == "type":
            continue
        if known not in kind.keys:
            hint = did_you_mean(str(key), [*kind.keys, *kind.aliases])
            problems.append(Problem(str(key), f"{name} has no such key", hint=hint))
        elif known in given:
            problems.append(Problem(str(key), f"{name} has this key twice, the other time as {known!r}"))
        elif value is None and kind.keys[known].default is None:
            given[known] = None
        elif wrong := kind.keys[known].problem(value):
            problems.append(Problem(str(key), f"{name}: {wrong[0]}", value, wrong[1]))
        else:
            given[known] = value
    missing = [key for key, entry in kind.keys.items() if entry.default is REQUIRED and key not in config]
    return given, problems + [Problem(key, f"{name} needs this key") for key in missing]


def _unknown(config: Mapping[Any, Any]) -> Spec:
    """A step without an op; all that it may write is lost, also what a misspelt key names."""
    given = [value for key, value in config.items() if "output" in str(key) and isinstance(value, str) and value]
    given += [value for key, value in config.items() if isinstance(value, str) and _is_output(str(key))]
    names = given if "output_name" in config else [*given, _default_output(config)]
    return Step.spec(into=tuple(dict.fromkeys(names or ["x"])), label=str(config.get("type", "")))


def _is_output(key: str) -> bool:
    return bool(difflib.get_close_matches(key.lower(), ["output_name"], cutoff=0.8))


def _default_output(config: Mapping[Any, Any]) -> str:
    kind = TYPES.get(str(config.get("type")).lower())
    default = "x" if kind is None or "output_name" not in kind.keys else kind.keys["output_name"].default
    return default if isinstance(default, str) else "x"
