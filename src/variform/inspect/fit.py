"""From measurements at several sizes to a formula, in exact arithmetic: no rounding, no tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations_with_replacement

from variform.inspect.polynomial import Atom, Expression, Monomial, monomial_value

Point = dict[str, int]


def monomials(batches: Sequence[Atom], lengths: Sequence[Atom]) -> list[Monomial]:
    """1 and each batch size, times all products of at most two lengths; the simple ones first."""
    products: list[Monomial] = [()]
    for degree in (1, 2):
        products += [tuple(sorted(p, key=str)) for p in combinations_with_replacement(lengths, degree)]
    return [tuple(sorted((*row, *product), key=str)) for product in products for row in [(), *((b,) for b in batches)]]


class Basis:
    """Points at which monomials take independent values, so that values there determine a polynomial.

    Args:
        monomials: what formulas are made of. One that no point tells from those before it stays unused.
    """

    def __init__(self, monomials: Sequence[Monomial]) -> None:
        self.monomials = list(monomials)
        self.points: list[Point] = []
        self._rows: list[list[Fraction]] = []
        self._pivots: list[int] = []

    @property
    def is_full(self) -> bool:
        """Whether there are as many points as monomials."""
        return len(self.points) == len(self.monomials)

    def tells_more(self, point: Point) -> bool:
        """Whether a measurement at this point is not implied by those at the others."""
        return any(self._reduced(point))

    def add(self, point: Point) -> None:
        """Take a point in."""
        row = self._reduced(point)
        pivot = next(i for i, entry in enumerate(row) if entry)
        self._rows.append([entry / row[pivot] for entry in row])
        self._pivots.append(pivot)
        self.points.append(point)

    def solve(self, values: Sequence[Sequence[int]]) -> list[Expression]:
        """The polynomials that have these values at the points: a row a point, a column a polynomial."""
        used = sorted(self._pivots)
        table = [
            [Fraction(monomial_value(self.monomials[i], point)) for i in used] + [Fraction(v) for v in row]
            for point, row in zip(self.points, values, strict=True)
        ]
        for column in range(len(used)):
            top = next(i for i in range(column, len(table)) if table[i][column])
            table[column], table[top] = table[top], table[column]
            pivot = table[column][column]
            table[column] = [entry / pivot for entry in table[column]]
            for i, row in enumerate(table):
                if i != column and row[column]:
                    table[i] = [a - row[column] * b for a, b in zip(row, table[column], strict=True)]
        factors = [row[len(used) :] for row in table]
        return [
            Expression({self.monomials[i]: row[column] for i, row in zip(used, factors, strict=True)})
            for column in range(len(values[0]))
        ]

    def _reduced(self, point: Point) -> list[Fraction]:
        row = [Fraction(monomial_value(monomial, point)) for monomial in self.monomials]
        for known, pivot in zip(self._rows, self._pivots, strict=True):
            if row[pivot]:
                factor = row[pivot]
                row = [a - factor * b for a, b in zip(row, known, strict=True)]
        return row
