"""`vf.compare`: what two models or programs have that the other has not, part by part and line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from variform.core.codec import as_spec
from variform.core.fields import Field, fields_of
from variform.core.inherit import Inherit
from variform.core.plain import is_same
from variform.core.resolve import resolve
from variform.core.spec import Shared, Spec, default_of
from variform.inspect.align import aligned, plain, runs
from variform.inspect.costing import costs_of_model
from variform.inspect.costs import Amount, Costs
from variform.inspect.fake import FakeModel
from variform.inspect.places import without_layer
from variform.inspect.streams import renamed, renames
from variform.stack.lines import Step

ABSENT = "-"
"""What stands for nothing on one side."""

Told = frozenset[tuple[str, str, str]]


@dataclass(frozen=True)
class FieldChange:
    """One field that differs: its path below the part, and what both sides have."""

    field: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.field}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Change:
    """One place where two descriptions differ.

    Args:
        kind: "added", "removed", "changed", or "repeated" where only the number of copies differs.
        before: the paths in the first; one a copy.
        after: the paths in the second.
        name: what stands there.
        fields: what differs in it; for "repeated" the numbers of copies.
        params: how many parameters more, all copies together; None where costs were not asked for.
        flops: how many operations more; None likewise.
    """

    kind: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    name: str
    fields: tuple[FieldChange, ...] = ()
    params: int | None = None
    flops: Amount | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "kind": self.kind,
            "before": list(self.before),
            "after": list(self.after),
            "name": self.name,
            "fields": [{"field": f.field, "before": f.before, "after": f.after} for f in self.fields],
            "params": self.params,
            "flops": None if self.flops is None else self.flops.to_json(),
        }


@dataclass(frozen=True)
class Comparison:
    """How two descriptions differ.

    Args:
        before: the first, resolved.
        after: the second, resolved.
        changes: in the order of the parts.
        streams: streams of programs that have another name, and no other difference.
        costs: of both; None where they were not asked for.
    """

    before: Spec
    after: Spec
    changes: tuple[Change, ...]
    streams: Mapping[str, str]
    costs: tuple[Costs, Costs] | None

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.changes or self.streams)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        whole = None if self.costs is None else [found.total.to_json() for found in self.costs]
        return {
            "equal": not self,
            "streams": dict(self.streams),
            "changes": [change.to_json() for change in self.changes],
            "before": None if whole is None else whole[0],
            "after": None if whole is None else whole[1],
        }

    def __str__(self) -> str:
        from variform.inspect.compare_text import comparison_text  # the text needs these classes

        return comparison_text(self)


def compare(a: Any, b: Any, at: Mapping[str, int] | None = None, *, measure: bool = True, **facts: Any) -> Comparison:
    """How two models or programs differ: parts or lines that were added, removed or changed, and what that costs.

    Lists are aligned by what their items have in common, so that one more line is one added line. Equal copies are
    looked at once. A field that follows from the same change further up is not told again.

    Args:
        a: a spec, a mapping, a config file, or a built model.
        b: the other.
        at: sizes by name, at which costs are given as numbers too; see `vf.costs`.
        measure: whether to tell costs.
        **facts: what the surroundings provide, where parts are compared alone.

    Raises:
        ConfigError: one of the two is wrong, or does not take the sizes of `at`.
    """
    given = [as_spec(source) for source in (a, b)]
    before, after = (resolve(spec, **facts) for spec in given)
    found = (_costs(before, at), _costs(after, at)) if measure else None
    # What parts take from their surroundings follows from these, and is told of only where it was written out.
    written_out = before == given[0] or after == given[1]
    left, right = map(without_layer, (before, after) if written_out else given)
    names = renames(left, right)
    changes = list(_Differ().parts(renamed(left, names), right, ("",), ("",), frozenset()))
    priced = [_priced(change, *found) for change in changes] if found is not None else changes
    return Comparison(before, after, tuple(priced), names, found)


def _costs(resolved: Spec, at: Mapping[str, int] | None) -> Costs:
    return costs_of_model(FakeModel(resolved, torch.float32), resolved, at, decode=False)


class _Differ:
    """Walks two trees at once."""

    def parts(self, a: Spec, b: Spec, at_a: Sequence[str], at_b: Sequence[str], told: Told) -> Iterator[Change]:
        """Two parts at corresponding places, and all below them."""
        if a == b:
            return
        if a.part is Step:  # a line is told of as a whole
            found = tuple(field for field in _all_fields(a, b, "") if _key(field) not in told)
            if found:
                yield Change("changed", tuple(at_a), tuple(at_b), _name(b), found)
            return
        own = [] if a.part is b.part else [FieldChange("", a.name, b.name)]
        own += _leaves(a, b)
        new = tuple(field for field in own if _key(field) not in told)
        if new:
            yield Change("changed", tuple(at_a), tuple(at_b), _name(b), new)
        told = told | {_key(field) for field in new}
        for slot in _slots(a, b):
            yield from self._slot(slot, a.get(slot), b.get(slot), at_a, at_b, told)

    def _slot(
        self, slot: str, a: Any, b: Any, at_a: Sequence[str], at_b: Sequence[str], told: Told
    ) -> Iterator[Change]:
        a, b = plain(a), plain(b)
        below_a, below_b = _below(at_a, slot), _below(at_b, slot)
        if isinstance(a, tuple) or isinstance(b, tuple):
            yield from self._lists(a or (), b or (), below_a, below_b, told)
        elif isinstance(a, Spec) and isinstance(b, Spec):
            yield from self.parts(a, b, below_a, below_b, told)
        elif isinstance(a, Spec):
            yield Change("removed", tuple(below_a), (), text_of(a))
        elif isinstance(b, Spec):
            yield Change("added", (), tuple(below_b), text_of(b))

    def _lists(
        self, a: Sequence[Any], b: Sequence[Any], at_a: Sequence[str], at_b: Sequence[str], told: Told
    ) -> Iterator[Change]:
        for left, right in aligned(runs(a), runs(b)):
            if left is None and right is not None:
                yield Change("added", (), _copies(at_b, right.places), text_of(right.spec))
            elif right is None and left is not None:
                yield Change("removed", _copies(at_a, left.places), (), text_of(left.spec))
            elif left is not None and right is not None:
                both = min(left.count, right.count)
                if left.count != right.count:
                    counts = FieldChange("copies", str(left.count), str(right.count))
                    more_a, more_b = _copies(at_a, left.places[both:]), _copies(at_b, right.places[both:])
                    yield Change("repeated", more_a, more_b, _name(right.spec), (counts,))
                here = (_copies(at_a, left.places[:both]), _copies(at_b, right.places[:both]))
                yield from self.parts(left.spec, right.spec, *here, told)


def _all_fields(a: Spec, b: Spec, below: str) -> Iterator[FieldChange]:
    """What differs in two parts and all below them."""
    if a.part is not b.part:
        yield FieldChange(below or "part", a.name, b.name)
    for field in _leaves(a, b):
        yield replace(field, field=_join(below, field.field))
    for slot in _slots(a, b):
        left, right = plain(a.get(slot)), plain(b.get(slot))
        if isinstance(left, Spec) and isinstance(right, Spec):
            yield from _all_fields(left, right, _join(below, slot))
        elif left != right:
            yield FieldChange(_join(below, slot), text_of(left), text_of(right))


def _leaves(a: Spec, b: Spec) -> list[FieldChange]:
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
    for name in _slots(a, b):
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


def _slots(a: Spec, b: Spec) -> list[str]:
    return list(dict.fromkeys(f.name for spec in (a, b) for f in fields_of(spec.part) if f.is_slot))


def text_of(value: Any) -> str:
    """A value in a few words; a part by its name, and what it was given beyond its defaults."""
    value = plain(value)
    if isinstance(value, Spec):
        if value.part is Step:
            named = value["label"] or plain(value["op"]).name
            return f"{named}: {', '.join(value['reads'])} -> {', '.join(value['into'])}"
        given = [f"{f.name}={text_of(value.get(f.name))}" for f in fields_of(value.part) if _is_told(value, f)]
        return f"{_name(value)}({', '.join(given)})" if given else _name(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(text_of, value))}]"
    return "none" if value is None else str(value)


def _is_told(spec: Spec, field: Field) -> bool:
    return not field.is_slot and field.name not in ("label", "dim") and _is_set(spec, field)


def _name(spec: Spec) -> str:
    label = spec.get("label")
    if spec.part is Step:
        return str(label or plain(spec["op"]).name)
    return str(label or spec.name)


def _key(field: FieldChange) -> tuple[str, str, str]:
    return (field.field.rpartition(".")[2], field.before, field.after)


def _join(path: str, step: str) -> str:
    return f"{path}.{step}" if path else step


def _below(paths: Sequence[str], step: str) -> list[str]:
    return [_join(path, step) for path in paths]


def _copies(paths: Sequence[str], places: range) -> tuple[str, ...]:
    return tuple(_join(path, str(place)) for path in paths for place in places)


def _priced(change: Change, before: Costs, after: Costs) -> Change:
    """A change with what it costs."""
    if not (change.before or change.after) or ("",) in (change.before, change.after):
        return change  # the whole, whose costs are told anyway
    params, flops = 0, None
    for found, paths, sign in ((before, change.before, -1), (after, change.after, 1)):
        by_path = {place.path: place for place in found.places}
        for path in paths:
            cost = by_path[path].cost
            params += sign * cost.params
            part = cost.flops if sign > 0 else _negative(cost.flops)
            flops = part if flops is None else flops + part
    return replace(change, params=params, flops=flops)


def _negative(amount: Amount) -> Amount:
    expression = None if amount.expression is None else amount.expression * -1
    return Amount(expression, None if amount.number is None else -amount.number)
