"""Sizes that are not known yet: integers and integer expressions over named sizes, compared exactly."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from variform.errors import ConfigError


@dataclass(frozen=True)
class Quotient:
    """The atom floor(of / by) of an expression, where the division does not come out even."""

    of: Dim
    by: int

    def __str__(self) -> str:
        inner = str(self.of)
        return f"{inner}//{self.by}" if inner.isidentifier() else f"({inner})//{self.by}"


Atom = str | Quotient
Monomial = tuple[Atom, ...]


class Dim:
    """An integer polynomial over named sizes: `L_in`, `2*B`, `L - 2`, `(L + 1)//2`.

    Two expressions are equal when their canonical forms are; an expression without names is a plain int, so that
    `Dim.symbol("L") - Dim.symbol("L") + 3 == 3`.

    Args:
        terms: products of names with their integer factors.
    """

    __slots__ = ("terms",)
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        kept = ((monomial, factor) for monomial, factor in terms.items() if factor)
        object.__setattr__(self, "terms", tuple(sorted(kept, key=_order)))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Dim is frozen")

    @staticmethod
    def symbol(name: str) -> Dim:
        """The size called `name`."""
        return Dim({(name,): 1})

    def __add__(self, other: int | Dim) -> int | Dim:
        total = dict(self.terms)
        for monomial, factor in _terms(other):
            total[monomial] = total.get(monomial, 0) + factor
        return _simplest(total)

    def __mul__(self, other: int | Dim) -> int | Dim:
        total: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                product = tuple(sorted(left + right, key=str))
                total[product] = total.get(product, 0) + a * b
        return _simplest(total)

    def __floordiv__(self, by: int) -> int | Dim:
        if by < 1:
            raise ConfigError("a size is divided by a positive integer only", value=by)
        even = _simplest({m: factor // by for m, factor in self.terms if factor % by == 0})
        rest = _simplest({m: factor for m, factor in self.terms if factor % by})
        if isinstance(rest, int):
            return even + rest // by
        return Dim({(Quotient(rest, by),): 1}) + even

    def __neg__(self) -> int | Dim:
        return self * -1

    def __sub__(self, other: int | Dim) -> int | Dim:
        return self + -1 * other

    def __rsub__(self, other: int) -> int | Dim:
        return -1 * self + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Dim, (dict(self.terms),))

    def symbols(self) -> frozenset[str]:
        """The names in the expression."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                found |= {atom} if isinstance(atom, str) else atom.of.symbols()
        return frozenset(found)

    def value(self, sizes: Mapping[str, int]) -> int:
        """The number, where every name has a size."""
        total = 0
        for monomial, factor in self.terms:
            for atom in monomial:
                factor *= sizes[atom] if isinstance(atom, str) else atom.of.value(sizes) // atom.by
            total += factor
        return total

    def __str__(self) -> str:
        text = ""
        for monomial, factor in self.terms:
            size = abs(factor)
            # Without brackets B*(L//2) would read as (B*L)//2, and -(L//2) as (-L)//2.
            alone = len(monomial) == 1 and (factor == 1 or (factor == -1 and bool(text)))
            product = "*".join(str(a) if alone or isinstance(a, str) else f"({a})" for a in monomial)
            term = str(size) if not product else product if size == 1 else f"{size}*{product}"
            sign = "-" if factor < 0 else "+"
            text += f" {sign} {term}" if text else f"-{term}" if factor < 0 else term
        return text

    __repr__ = __str__


Shape = tuple["int | Dim", ...]
"""The sizes of a tensor, known or named."""


def parse_dim(text: int | str) -> int | Dim:
    """A size from how it is written: `768`, `"L_in"`, `"2*B"`, `"(L + 1)//2"`.

    Raises:
        ConfigError: not an integer expression over names, or a number below 1.
    """
    if isinstance(text, int):
        if text < 1:
            raise ConfigError("a size is at least 1", value=text)
        return text
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, ValueError):
        hint = "write a number, a name, or an expression of them: 'L', '2*B', 'L - 2', 'L//2'"
        raise ConfigError("this is not a size", value=text, hint=hint) from None


def parse_shape(sizes: Iterable[int | str]) -> Shape:
    """A shape from its sizes as they are written."""
    return tuple(parse_dim(size) for size in sizes)


def shape_text(shape: Sequence[int | Dim]) -> str:
    """A shape as a reader writes it: `(B, L, 768)`."""
    return f"({', '.join(map(str, shape))})"


def size_of(dim: int | Dim, sizes: Mapping[str, int]) -> int:
    """The number behind a size, where every name has one."""
    return dim if isinstance(dim, int) else dim.value(sizes)


def _terms(value: int | Dim) -> tuple[tuple[Monomial, int], ...]:
    return (((), value),) if isinstance(value, int) else value.terms


def _simplest(terms: Mapping[Monomial, int]) -> int | Dim:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    return kept[()] if set(kept) == {()} else Dim(kept)


def _order(term: tuple[Monomial, int]) -> tuple[Any, ...]:
    """Products before the plain number, positive terms first: `L - 2`, not `-2 + L`."""
    monomial, factor = term
    return (not monomial, factor < 0, tuple(map(str, monomial)))


def _evaluate(node: ast.expr) -> int | Dim:
    match node:
        case ast.Name(id=name):
            return Dim.symbol(name)
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _evaluate(left), _evaluate(right)
            match operator:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv() if isinstance(b, int):
                    return a // b
    raise ValueError("not an integer expression")
