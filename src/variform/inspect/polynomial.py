"""Costs as formulas: polynomials in the names of sizes with rational factors, compared exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from math import lcm

from variform.core.dims import Quotient


@dataclass(frozen=True)
class Least:
    """The atom min(of, limit): a window, or a table, that long sequences outgrow."""

    of: str
    limit: int

    def __str__(self) -> str:
        return f"min({self.of}, {self.limit})"


Atom = str | Quotient | Least
Monomial = tuple[Atom, ...]


def atom_value(atom: Atom, sizes: Mapping[str, int]) -> int:
    """The number behind an atom."""
    if isinstance(atom, str):
        return sizes[atom]
    if isinstance(atom, Least):
        return min(sizes[atom.of], atom.limit)
    return atom.of.value(sizes) // atom.by


def monomial_value(monomial: Monomial, sizes: Mapping[str, int]) -> int:
    """The product of its atoms."""
    product = 1
    for atom in monomial:
        product *= atom_value(atom, sizes)
    return product


class Expression:
    """A number that depends on sizes: `1179648*B*L`, `2*B*L**2 + 2*B*L`. Its text is valid Python.

    Expressions are equal when all their terms are, and add up like numbers.

    Args:
        terms: products of atoms with their factors.
    """

    __slots__ = ("terms",)
    terms: tuple[tuple[Monomial, Fraction], ...]

    def __init__(self, terms: Mapping[Monomial, Fraction | int]) -> None:
        kept = [(monomial, Fraction(factor)) for monomial, factor in terms.items() if factor]
        self.terms = tuple(sorted(kept, key=lambda term: (-len(term[0]), tuple(map(str, term[0])))))

    @staticmethod
    def number(value: int) -> Expression:
        """An expression without names."""
        return Expression({(): value})

    def exact(self, sizes: Mapping[str, int]) -> Fraction:
        """The number at these sizes.

        Raises:
            KeyError: a name has no size.
        """
        return sum((factor * monomial_value(monomial, sizes) for monomial, factor in self.terms), Fraction(0))

    def value(self, sizes: Mapping[str, int]) -> int:
        """The number at these sizes as an integer, as the text gives it.

        Raises:
            KeyError: a name has no size.
        """
        return int(self.exact(sizes) // 1)

    def __add__(self, other: Expression) -> Expression:
        total = dict(self.terms)
        for monomial, factor in other.terms:
            total[monomial] = total.get(monomial, Fraction(0)) + factor
        return Expression(total)

    def __sub__(self, other: Expression) -> Expression:
        return self + other * -1

    def __mul__(self, factor: int) -> Expression:
        return Expression({monomial: factor * own for monomial, own in self.terms})

    def __bool__(self) -> bool:
        return bool(self.terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __repr__(self) -> str:
        return f"Expression({self})"

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        below = lcm(*(factor.denominator for _, factor in self.terms))
        text = ""
        for monomial, factor in self.terms:
            number = int(abs(factor) * below)
            product = _product(monomial)
            term = str(number) if not product else product if number == 1 else f"{number}*{product}"
            sign = "-" if factor < 0 else "+"
            text += f" {sign} {term}" if text else f"-{term}" if factor < 0 else term
        return text if below == 1 else f"({text})//{below}"


def _product(monomial: Monomial) -> str:
    factors = []
    for atom, uses in groupby(monomial):
        text = f"({atom})" if isinstance(atom, Quotient) else str(atom)
        power = len(list(uses))
        factors.append(text if power == 1 else f"{text}**{power}")
    return "*".join(factors)
