"""`vf.compare`: what two models or programs have that the other has not, part by part and line by line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from variform.core.codec import as_spec
from variform.core.resolve import resolve
from variform.core.spec import Spec
from variform.inspect.align import matched, plain
from variform.inspect.costing import costs_of_model
from variform.inspect.costs import Amount, Costs, Place
from variform.inspect.fake import FakeModel
from variform.inspect.fieldwise import FieldChange, all_fields, joined, leaves, name_of, slots, text_of
from variform.inspect.places import without_layer
from variform.inspect.streams import renamed, renames
from variform.inspect.table import path_template
from variform.stack.lines import Step

Told = frozenset[tuple[str, str, str]]


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
    changes = _together(_Differ().parts(renamed(left, names), right, ("",), ("",), frozenset()))
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
            found = tuple(field for field in all_fields(a, b, "") if _key(field) not in told)
            if found:
                yield Change("changed", tuple(at_a), tuple(at_b), name_of(b), found)
            return
        own = [] if a.part is b.part else [FieldChange("", a.name, b.name)]
        own += leaves(a, b)
        new = tuple(field for field in own if _key(field) not in told)
        if new:
            yield Change("changed", tuple(at_a), tuple(at_b), name_of(b), new)
        told = told | {_key(field) for field in new}
        for slot in slots(a, b):
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
        for left, right in matched(a, b):
            if left is None and right is not None:
                yield Change("added", (), _copies(at_b, right.places), text_of(right.spec))
            elif right is None and left is not None:
                yield Change("removed", _copies(at_a, left.places), (), text_of(left.spec))
            elif left is not None and right is not None:
                both = min(left.count, right.count)
                if left.count != right.count:
                    counts = FieldChange("copies", str(left.count), str(right.count))
                    more_a, more_b = _copies(at_a, left.places[both:]), _copies(at_b, right.places[both:])
                    yield Change("repeated", more_a, more_b, name_of(right.spec), (counts,))
                here = (_copies(at_a, left.places[:both]), _copies(at_b, right.places[:both]))
                yield from self.parts(left.spec, right.spec, *here, told)


def _together(changes: Iterable[Change]) -> list[Change]:
    """Changes with those that are the same in another copy as one."""
    found: dict[tuple[object, ...], Change] = {}
    for change in changes:
        places = [_place(paths) for paths in (change.before, change.after)]
        key = (change.kind, change.name, change.fields, *places)
        if key not in found:
            found[key] = change
            continue
        same = found[key]
        found[key] = replace(same, before=same.before + change.before, after=same.after + change.after)
    return list(found.values())


def _place(paths: Sequence[str]) -> tuple[str, ...]:
    """Where copies of a part stand, whichever copies: the path without its numbers, but for the last."""
    if not paths:
        return ()
    numbers = [step for step in paths[0].split(".") if step.isdecimal()]
    return (*path_template(paths[0]), *numbers[-1:])


def _key(field: FieldChange) -> tuple[str, str, str]:
    return (field.field.rpartition(".")[2], field.before, field.after)


def _below(paths: Sequence[str], step: str) -> list[str]:
    return [joined(path, step) for path in paths]


def _copies(paths: Sequence[str], places: range) -> tuple[str, ...]:
    return tuple(joined(path, str(place)) for path in paths for place in places)


def _priced(change: Change, before: Costs, after: Costs) -> Change:
    """A change with what it costs."""
    if not (change.before or change.after) or ("",) in (change.before, change.after):
        return change  # the whole, whose costs are told anyway
    params, flops = 0, None
    for found, paths, sign in ((before, change.before, -1), (after, change.after, 1)):
        by_path = {place.path: place for place in found.places}
        first = _first_places(found.places)
        for path in paths:
            place = by_path[path]
            cost = place.cost
            params += sign * sum(count for key, count in place.weights.items() if _within(first[key], path))
            part = cost.flops if sign > 0 else _negative(cost.flops)
            flops = part if flops is None else flops + part
    return replace(change, params=params, flops=flops)


def _first_places(places: Sequence[Place]) -> dict[str, str]:
    """Where weights stand first, by their keys: the part that counts them where several share them.

    Args:
        places: parents before what is below them.
    """
    found: dict[str, str] = {}
    for place in places:
        for key in place.weights:
            above = found.get(key)
            if not above or place.path.startswith(f"{above}."):
                found[key] = place.path
    return found


def _within(path: str, above: str) -> bool:
    return path == above or path.startswith(f"{above}.")


def _negative(amount: Amount) -> Amount:
    expression = None if amount.expression is None else amount.expression * -1
    return Amount(expression, None if amount.number is None else -amount.number)
