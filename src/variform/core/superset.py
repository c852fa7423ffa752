"""Superset configs: keys that another part of the same kind knows are set aside, as sweeps over parts pass them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.core.fields import field_map
from variform.core.registry import lookup, parts
from variform.errors import ConfigError, join_path

NEVER_DROPPED = frozenset({"causal"})
"""What must be honoured or refused, never set aside."""


def set_aside(data: Any, kinds: tuple[str, ...] = (), path: str = "") -> tuple[Any, tuple[str, ...]]:
    """Plain data without the keys that belong to other parts of the same kind, and the paths of those keys.

    A key that no part of the kind knows stays, for the reader to refuse.

    Args:
        data: the plain form of a part; see `variform.core.plain`.
        kinds: the kinds that may stand here; any when left out.
        path: where it stands.
    """
    if not isinstance(data, Mapping):
        return data, ()
    if "part" not in data:  # a shared part, a repeat or a preset: what is inside `of` is a part
        inner, found = set_aside(data.get("of"), kinds, join_path(path, "of"))
        return ({**data, "of": inner} if "of" in data else data), found
    try:
        part = lookup(str(data["part"]), kinds)
    except ConfigError:
        return data, ()
    known = field_map(part)
    foreign = {name for other in parts(part.kind).values() for name in field_map(other)} - set(known) - NEVER_DROPPED
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    for key, value in data.items():
        here = join_path(path, str(key))
        if key in foreign:
            dropped.append(here)
            continue
        if key in known and known[key].is_slot:
            value, below = _slot(value, known[key].kind_names(), here)
            dropped.extend(below)
        kept[key] = value
    return kept, tuple(dropped)


def _slot(value: Any, kinds: tuple[str, ...], path: str) -> tuple[Any, list[str]]:
    if not isinstance(value, (list, tuple)):
        one, dropped = set_aside(value, kinds, path)
        return one, list(dropped)
    pairs = [set_aside(item, kinds, f"{path}.{index}") for index, item in enumerate(value)]
    return [item for item, _ in pairs], [where for _, found in pairs for where in found]
