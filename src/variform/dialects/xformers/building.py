"""From a nested dict to a part: which keys it takes, what it lacks, what is dropped, and what nobody knows."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Union

from variform.core.fields import REQUIRED, Field, check_value, fields_of
from variform.core.part import Part
from variform.dialects.xformers.errors import Wrong, config_error, wrongs
from variform.dialects.xformers.utils import Item, Registry
from variform.errors import ConfigError, did_you_mean

NEVER_DROPPED = frozenset({"causal", "scores", "weights", "memory"})
"""Keys that say what may be seen, or what an attention computes: a part that does not know them refuses them."""


@dataclass(frozen=True)
class Key:
    """One key that a part's configuration has.

    Args:
        name: the key.
        annotation: the type of its values.
        required: the constructor has no default for it.
        passed: the constructor takes it.
    """

    name: str
    annotation: Any
    required: bool
    passed: bool


@dataclass(frozen=True)
class Plan:
    """What building a part from a configuration comes to.

    Args:
        item: the registered part.
        arguments: what its constructor gets.
        dropped: keys of the configuration that another part of the kind knows and this one does not.
    """

    item: Item
    arguments: Mapping[str, Any]
    dropped: tuple[str, ...]


def build_part(registry: Registry, config: Any, offers: Mapping[str, Any] | None = None) -> Any:
    """Build the part that a dict or a configuration dataclass names; `.dropped` lists the keys it had no use for.

    Args:
        registry: where the name is looked up.
        config: a mapping with the key `name`, or an instance of the part's configuration dataclass. Not changed.
        offers: values of the surroundings, for parts that take them and are not told otherwise.

    Raises:
        ConfigError: with every problem of the configuration.
    """
    plan, problems = plan_part(registry, config, offers)
    if plan is None or problems:
        raise config_error(problems)
    part = plan.item.constructor(**plan.arguments)
    part.dropped = plan.dropped
    return part


def plan_part(
    registry: Registry, config: Any, offers: Mapping[str, Any] | None = None
) -> tuple[Plan | None, list[Wrong]]:
    """Check a configuration without building; the plan is None where not even the name is known."""
    given = as_mapping(config)
    if given is None:
        return None, [Wrong("", f"a dict with a name describes the {registry.kind}", config, like=TypeError)]
    if given.get("name") is None:
        return None, [Wrong("name", f"which {registry.kind}?", hint=f"one of: {', '.join(registry)}", like=KeyError)]
    try:
        item = registry[given["name"]]
    except ConfigError as error:
        return None, wrongs(error)
    known = keys_of(item)
    problems: list[Wrong] = []
    dropped = _sort_out(registry, given, known, problems)
    values = {key: value for key, value in given.items() if key in known}
    for name, value in (offers or {}).items():
        if name in known and values.get(name) is None:
            values[name] = value
    return Plan(item, _arguments(given["name"], known, values, problems), dropped), problems


def as_mapping(config: Any) -> Mapping[str, Any] | None:
    """A configuration as a mapping: itself, or the fields of a dataclass instance."""
    if isinstance(config, Mapping):
        return config
    if is_dataclass(config) and not isinstance(config, type):
        return {f.name: getattr(config, f.name) for f in fields(config)}
    return None


def keys_of(item: Item) -> dict[str, Key]:
    """The keys that a part knows: the fields of its configuration dataclass and its constructor's parameters."""
    return dict(_keys_of(item))


@functools.lru_cache(maxsize=1024)
def _keys_of(item: Item) -> Mapping[str, Key]:
    listed: Mapping[str, Key] | None = getattr(item.constructor, "config_keys", None)
    if listed is not None:
        return dict(listed)
    signature = inspect.signature(item.constructor.__init__)
    hints = hints_of(item.constructor.__init__)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    found: dict[str, Key] = {}
    for f in fields(item.config):
        found[f.name] = Key(f.name, hints_of(item.config).get(f.name, Any), False, takes_all)
    for name, parameter in list(signature.parameters.items())[1:]:
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            annotation = hints.get(name, found[name].annotation if name in found else Any)
            found[name] = Key(name, annotation, parameter.default is parameter.empty, True)
    found.setdefault("name", Key("name", str, False, takes_all))
    return found


def native_keys(part: type[Part]) -> dict[str, Key]:
    """The keys of one of the library's own parts: its fields; what is in a slot is checked when it is built."""
    return {f.name: Key(f.name, Any if f.is_slot else f.annotation, f.required, True) for f in fields_of(part)}


def known_keys(registry: Registry) -> set[str]:
    """Every key that some part of the kind knows."""
    return {key for item in registry.everything().values() for key in _keys_of(item)}


def superset_keys(registry: Registry, given: Mapping[str, Any], owner: str) -> tuple[str, ...]:
    """The further keywords of a constructor, all of which another part of the kind must know.

    Raises:
        ConfigError: a keyword nobody knows, or one that may not be dropped.
    """
    problems: list[Wrong] = []
    known = {"name": Key("name", str, False, False)}
    dropped = _sort_out(registry, {**given, "name": owner}, known, problems)
    if problems:
        raise config_error(problems)
    return dropped


def verify(cls: type, **values: Any) -> None:
    """Check a constructor's arguments against its annotations, for calls that come past `build_part`.

    Raises:
        ConfigError: with all wrong arguments.
    """
    hints = hints_of(getattr(cls, "__init__"))  # noqa: B009  the constructor of this very class
    problems = [wrong for name, value in values.items() if (wrong := checked(name, hints.get(name, Any), value)[1])]
    if problems:
        raise config_error(problems)


def checked(name: str, annotation: Any, value: Any) -> tuple[Any, Wrong | None]:
    """A value of the annotated type, or what is wrong with it. Names of an enumeration become its members."""
    options = _enum_of(annotation)
    if options is not None and isinstance(value, str):
        try:
            return options(value), None
        except ValueError:
            hint = did_you_mean(value, [str(option.value) for option in options])
            return value, Wrong(name, f"not one of the choices of {options.__name__}", value, hint, like=KeyError)
    field = Field(name, annotation, REQUIRED, "", (), False, False)
    if isinstance(value, list) and typing.get_origin(annotation) is tuple:
        value = tuple(value)  # files have lists alone
    found, message = check_value(field, value)
    if message is not None and isinstance(value, float) and value.is_integer():
        found, message = check_value(field, int(value))  # sizes that old code divided: MODEL / heads
    return (found, None) if message is None else (value, Wrong(name, message, value, like=TypeError))


def _sort_out(
    registry: Registry, given: Mapping[str, Any], known: Mapping[str, Key], problems: list[Wrong]
) -> tuple[str, ...]:
    """Which of the keys a part does not know are another part's; problems of the rest."""
    owner, others, dropped = given["name"], known_keys(registry) | registry.surroundings, []
    for key in given:
        if key in known:
            continue
        if key in NEVER_DROPPED and key in others and given[key] is not None and given[key] is not False:
            able = ", ".join(name for name in registry if key in keys_of(registry[name]))
            message = f"the {registry.kind} {owner!r} cannot honour {key!r}, which may not be dropped"
            problems.append(Wrong(key, message, hint=f"it is honoured by: {able}"))
        elif key in others:
            dropped.append(str(key))
        else:
            message = f"no {registry.kind} has a key {key!r}"
            problems.append(Wrong(str(key), message, hint=did_you_mean(str(key), others), like=TypeError))
    return tuple(dropped)


def _arguments(
    owner: Any, known: Mapping[str, Key], values: Mapping[str, Any], problems: list[Wrong]
) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for key in known.values():
        value = values.get(key.name)
        if value is None:
            if key.name in values and key.required and _allows_none(key.annotation):
                arguments[key.name] = None
            elif key.required:
                problems.append(Wrong(key.name, f"{owner!r} needs this key", like=TypeError))
            continue
        value, wrong = checked(key.name, key.annotation, value)
        if wrong is not None:
            problems.append(wrong)
        elif key.passed:
            arguments[key.name] = value
    return arguments


def hints_of(owner: Any) -> dict[str, Any]:
    """Annotations as objects; none where a user's annotations cannot be resolved: those values are not checked."""
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except (NameError, AttributeError, TypeError):
        return {}


def _allows_none(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType) and type(None) in typing.get_args(annotation)


def _enum_of(annotation: Any) -> type[Enum] | None:
    choices = typing.get_args(annotation) or (annotation,)
    return next((c for c in choices if isinstance(c, type) and issubclass(c, Enum)), None)
