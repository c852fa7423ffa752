"""What differs in the fields of two parts, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from variform.core.fields import Field, fields_of
from variform.core.inherit import Inherit
from variform.core.plain import is_same
from variform.core.spec import Shared, Spec, default_of
from variform.inspect.align import plain
from variform.stack.lines import Step

ABSENT = "-"
"""What stands for nothing on one side."""


@dataclass(frozen=True)
class FieldChange:
    """One field that differs: its path below the part, and what both sides have."""

    field: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.field}: {self.before} -> {self.after}"


def all_fields(a: Spec, b: Spec, below: str) -> Iterator[FieldChange]:
    """What differs in two parts and all below them."""
    if a.part is not b.part:
        yield FieldChange(below or "part", a.name, b.name)
    for field in leaves(a, b):
        yield replace(field, field=joined(below, field.field))
    for slot in slots(a, b):
        left, right = plain(a.get(slot)), plain(b.get(slot))
        if isinstance(left, Spec) and isinstance(right, Spec):
            yield from all_fields(left, right, joined(below, slot))
        elif left != right:
            yield FieldChange(joined(below, slot), text_of(left), text_of(right))


def leaves(a: Spec, b: Spec) -> list[FieldChange]:
    """Plain fields that differ; of different parts, those of both, and what one was given beyond its defaults."""
    left, right = ({f.name: f for f in fields_of(spec.part) if not f.is_slot} for spec in (a, b))
    found = []
    for name in dict.fromkeys((*left, *right)):
        if name in left and name in right:
            if not is_same(a.get(name), b.get(name)):
                found.append(FieldChange(name, text_of(a.get(name)), text_of(b.get(name))))
        elif name in left and _is_set(a, left[name]):
            found.append(FieldChange(name, text_of(a.get(name)), ABSENT))
        elif name in right and _is_set(b, right[name]):
            found.append(FieldChange(name, ABSENT, text_of(b.get(name))))
    for name in slots(a, b):
        marks = [value.name if isinstance(value := spec.get(name), Shared) else None for spec in (a, b)]
        if marks[0] != marks[1]:
            found.append(FieldChange(f"{name} shared as", text_of(marks[0]), text_of(marks[1])))
    return found


def _is_set(spec: Spec, field: Field) -> bool:
    """Whether a field has another value than it would have had by itself."""
    if field.required:
        return True
    default = default_of(field)
    return not isinstance(default, Inherit) and not is_same(default, spec.get(field.name))


def slots(a: Spec, b: Spec) -> list[str]:
    """The fields of either that hold parts."""
    return list(dict.fromkeys(f.name for spec in (a, b) for f in fields_of(spec.part) if f.is_slot))


def text_of(value: Any) -> str:
    """A value in a few words; a part by its name, and what it was given beyond its defaults."""
    value = plain(value)
    if isinstance(value, Spec):
        if value.part is Step:
            named = value["label"] or plain(value["op"]).name
            return f"{named}: {', '.join(value['reads'])} -> {', '.join(value['into'])}"
        given = [f"{f.name}={text_of(value.get(f.name))}" for f in fields_of(value.part) if _is_told(value, f)]
        return f"{name_of(value)}({', '.join(given)})" if given else name_of(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(text_of, value))}]"
    return "none" if value is None else str(value)


def _is_told(spec: Spec, field: Field) -> bool:
    return not field.is_slot and field.name not in ("label", "dim") and _is_set(spec, field)


def name_of(spec: Spec) -> str:
    """What a part is called: its label, or its name."""
    label = spec.get("label")
    if spec.part is Step:
        return str(label or plain(spec["op"]).name)
    return str(label or spec.name)


def joined(path: str, step: str) -> str:
    """A path with one more step."""
    return f"{path}.{step}" if path else step
