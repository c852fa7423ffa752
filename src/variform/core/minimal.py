"""The shortest description of a resolved part: without all that resolution fills in by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.core.fields import Field, check_value, field_map, fields_of
from variform.core.inherit import Inherit
from variform.core.part import Part
from variform.core.plain import is_same
from variform.core.resolve import count_writes
from variform.core.spec import MISSING, Shared, Spec, default_of, described


def minimal(spec: Spec, **facts: Any) -> Spec:
    """A resolved spec without defaults and without fields whose values the surroundings provide.

    `resolve(minimal(spec, **facts), **facts)` is `spec` again. What is shared is left as it is, since it has to be
    described alike wherever it stands.

    Args:
        spec: a resolved spec.
        **facts: what the surroundings provide, as for `resolve`.
    """
    return _bare(spec, {"writes": count_writes(spec), **facts}, {})


def _bare(spec: Spec, around: Mapping[str, Any], seen: dict[int, Spec]) -> Spec:
    own = {name: value for name, value in spec.args.items() if not field_map(spec.part)[name].is_slot}
    facts = {**around, **{name: value for name, value in own.items() if value is not None}}
    facts.update({name: value for name, value in spec.part.derive({**facts, **own}).items() if value is not None})
    kept: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for f in fields_of(spec.part):
        value = spec.args[f.name]
        if f.is_slot:
            value = _children(spec.part, f, value, facts, own, given, seen)
        if not _is_filled_in(f, value, around):
            kept[f.name] = value
    found = seen[id(spec)] = Spec(spec.part, kept)
    return found


def _children(
    part: type[Part],
    f: Field,
    value: Any,
    facts: Mapping[str, Any],
    own: Mapping[str, Any],
    given: dict[str, Any],
    seen: dict[int, Spec],
) -> Any:
    """The bare descriptions in a slot; facts reach them as they do when they are resolved."""
    if value is None:
        return None
    items = value if f.many else (value,)
    follower = part.follow(f.name, {**facts, **own}) if f.many else None
    found: list[Spec | Shared] = []
    for index, item in enumerate(items):
        provided = part.provides(f.name, index, len(items), {**facts, **own})
        known = {} if follower is None else follower.before(index, item) or {}
        around = {**facts, **given, **provided, **known}
        if isinstance(item, Shared):
            found.append(item)
        elif "resolved" in known:  # the follower has seen it with the same facts
            found.append(seen[id(item)])
        else:
            found.append(_bare(item, around, seen))
        if follower is not None:
            follower.after(index, item)
        inner = described(item)
        given.update(inner.part.gives({**around, **dict(inner.args)}))
    return tuple(found) if f.many else found[0]


def _is_filled_in(f: Field, value: Any, around: Mapping[str, Any]) -> bool:
    default = default_of(f)
    if not isinstance(default, Inherit):
        return default is not MISSING and is_same(value, default)
    if around.get(f.name) is not None:
        return is_same(value, check_value(f, around[f.name])[0])
    if default.has_fallback:
        return is_same(value, default.fallback)
    return value is None and f.optional
