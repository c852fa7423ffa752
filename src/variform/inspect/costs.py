"""`vf.costs`: what every part of a model, and every line of a program, costs, as formulas in the names of sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from variform.core.spec import Spec
from variform.inspect.polynomial import Expression
from variform.inspect.survey import Sizes
from variform.stack.trace import Row

FIGURES = ("flops", "flops_dense", "flops_backward", "activation_bytes")
"""What a run measures, in this order; `state_bytes` comes beside it."""


@dataclass(frozen=True)
class Amount:
    """A number that depends on sizes.

    Args:
        expression: the formula; None where no polynomial in the sizes gives what was measured.
        number: the value at the sizes asked for; None where none were asked for.
    """

    expression: Expression | None
    number: int | None = None

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            None if self.expression is None or other.expression is None else self.expression + other.expression,
            None if self.number is None or other.number is None else self.number + other.number,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            None if self.expression is None or other.expression is None else self.expression - other.expression,
            None if self.number is None or other.number is None else self.number - other.number,
        )

    def __bool__(self) -> bool:
        return bool(self.number) if self.expression is None else bool(self.expression)

    def __str__(self) -> str:
        if self.expression is not None:
            return str(self.expression)
        return "no formula" if self.number is None else f"{self.number} (no formula)"

    def to_json(self) -> dict[str, Any]:
        """The text of the formula, and the number."""
        return {"expression": None if self.expression is None else str(self.expression), "value": self.number}


ZERO = Amount(Expression({}), 0)


@dataclass(frozen=True)
class Cost:
    """What a part, a line, or a group of them costs, all below it included.

    Args:
        params: parameters, shared ones counted once.
        flops: operations of the forward pass; attention counts visited pairs, a multiply-add counts 2.
        flops_dense: the same with attention over the full square.
        flops_backward: operations of the backward pass, without what is computed again.
        activation_bytes: kept for the backward pass; what several lines keep counts for the first.
        state_bytes: decode state of the batch for `max_len` tokens; None where the model cannot decode.
    """

    params: int
    flops: Amount
    flops_dense: Amount
    flops_backward: Amount
    activation_bytes: Amount
    state_bytes: Amount | None

    @staticmethod
    def of(params: int, figures: Sequence[Amount], state_bytes: Amount | None) -> Cost:
        """A cost from what a run measures, in the order of `FIGURES`."""
        flops, dense, backward, kept = figures
        return Cost(params, flops, dense, backward, kept, state_bytes)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        state = None if self.state_bytes is None else self.state_bytes.to_json()
        named = {name: getattr(self, name).to_json() for name in FIGURES}
        return {"params": self.params, **named, "state_bytes": state}


@dataclass(frozen=True)
class Place:
    """One part of the model.

    Args:
        path: where it stands; empty for the whole.
        kind: of the part.
        name: of the part.
        cost: its cost.
        shared: the name under which it is shared, or None.
        weights: its own parameters and those below it, by what owns them: equal keys are the same weights.
    """

    path: str
    kind: str
    name: str
    cost: Cost
    shared: str | None = None
    weights: Mapping[str, int] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "path": self.path,
            "kind": self.kind,
            "name": self.name,
            "shared": self.shared,
            **self.cost.to_json(),
        }


@dataclass(frozen=True)
class Line:
    """One line of a program, and its cost.

    Args:
        row: the line with the shapes that it reads and writes.
        place: the step that it is.
    """

    row: Row
    place: Place

    @property
    def cost(self) -> Cost:
        """What it costs."""
        return self.place.cost

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        row = self.row
        return {"block": row.block, "repeat": row.repeat, "line": row.line, **self.place.to_json(), "name": row.name}


@dataclass(frozen=True)
class Group:
    """Consecutive copies of a block, or lines outside blocks.

    Copies with equal lines may keep different memory for the backward pass: what several of them keep counts for the
    first.

    Args:
        label: the heading of the block; empty for lines outside blocks.
        copies: the lines of each copy.
    """

    label: str
    copies: tuple[tuple[Line, ...], ...]

    @property
    def typical(self) -> tuple[Line, ...]:
        """The copy of which most others have the costs, the last of them."""
        counts = Counter(tuple(line.cost for line in copy) for copy in self.copies)
        return max(reversed(self.copies), key=lambda copy: counts[tuple(line.cost for line in copy)])

    @property
    def one(self) -> Cost:
        """The cost of the typical copy."""
        return total([line.place for line in self.typical])

    @property
    def all(self) -> Cost:
        """The cost of all copies."""
        return total([line.place for copy in self.copies for line in copy])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "block": self.label,
            "copies": len(self.copies),
            "one_copy": self.one.to_json(),
            "all_copies": self.all.to_json(),
        }


@dataclass(frozen=True)
class Costs:
    """What a model costs, part by part; formulas hold at all sizes at which it was measured.

    Args:
        spec: the resolved spec.
        sizes: the names in the formulas.
        at: the sizes of the numbers; None where none were asked for.
        dtype: of parameters and activations.
        places: one a part, parents first; the first is the whole.
        rows: the lines of a program; none for other models.
        state_reason: why there is no decode state, or empty.
        measured_at: the sizes at which was measured.
    """

    spec: Spec
    sizes: Sizes
    at: Mapping[str, int] | None
    dtype: str
    places: tuple[Place, ...]
    rows: tuple[Row, ...] = ()
    state_reason: str = ""
    measured_at: tuple[Mapping[str, int], ...] = ()

    @property
    def total(self) -> Cost:
        """The cost of the whole."""
        return self.places[0].cost

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The lines of a program, copies included."""
        by_path = {place.path: place for place in self.places}
        return tuple(Line(row, by_path[row.path]) for row in self.rows)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The lines by block."""
        groups: list[tuple[str, list[list[Line]]]] = []
        last: Row | None = None
        for line in self.lines:
            row = line.row
            if last is None or row.block != last.block:
                groups.append((row.block, [[]]))
            elif row.repeat != last.repeat:
                groups[-1][1].append([])
            groups[-1][1][-1].append(line)
            last = row
        return tuple(Group(label, tuple(map(tuple, copies))) for label, copies in groups)

    @property
    def outside(self) -> Cost | None:
        """What the program costs beside its lines; None for other models."""
        if not self.lines:
            return None
        lines, whole = total([line.place for line in self.lines]), self.total
        state = (
            None if whole.state_bytes is None or lines.state_bytes is None else whole.state_bytes - lines.state_bytes
        )
        figures = [getattr(whole, name) - getattr(lines, name) for name in FIGURES]
        return Cost.of(whole.params - lines.params, figures, state)

    def place(self, path: str) -> Place:
        """The part at a path."""
        return next(place for place in self.places if place.path == path)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "sizes": {"batches": list(self.sizes.batches), "lengths": list(self.sizes.lengths)},
            "at": None if self.at is None else dict(self.at),
            "dtype": self.dtype,
            "measured_at": [dict(point) for point in self.measured_at],
            "state_reason": self.state_reason,
            "total": self.total.to_json(),
            "blocks": [group.to_json() for group in self.groups],
            "lines": [line.to_json() for line in self.lines],
            "parts": [place.to_json() for place in self.places],
        }

    def __str__(self) -> str:
        from variform.inspect.cost_table import costs_text  # the text needs these classes

        return costs_text(self)


def total(places: Sequence[Place]) -> Cost:
    """The sum over places of which none contains another; weights that several of them share count once."""
    weights: dict[str, int] = {}
    for place in places:
        weights.update(place.weights)
    figures = [_sum(getattr(place.cost, name) for place in places) for name in FIGURES]
    states = [place.cost.state_bytes for place in places]
    state = None if None in states else _sum(amount for amount in states if amount is not None)
    return Cost.of(sum(weights.values()), figures, state)


def _sum(amounts: Iterable[Amount]) -> Amount:
    found = list(amounts)
    start = found[0] if found else ZERO
    for amount in found[1:]:
        start = start + amount
    return start
