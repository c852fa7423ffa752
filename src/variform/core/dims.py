"""Sizes that are not known yet: integers and integer expressions over named sizes, compared exactly."""

from __future__ import annotations

import ast
import itertools
import math
import zlib
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

_MOST_POINTS = 50_000
"""How many points two expressions are compared at, at most: beyond that they count as different."""


class Dim:
    """An integer polynomial over named sizes and quotients of them: `L_in`, `2*B`, `L - 2`, `(L + 1)//2`.

    Two expressions are equal when they have the same value whatever the named sizes are: `(L//2)//2 == L//4`,
    `L - L//2 == (L + 1)//2`, and `2*(L//2)` is not `L`. An expression that has one value only is a plain int, so that
    `Dim.symbol("L") - Dim.symbol("L") + 3 == 3`.

    Args:
        terms: products of names with their integer factors.
    """

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]
    _hash: int

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
        # floor((q b + r) X / b) = q X + floor(r X / b): what comes out even stands outside.
        even = _simplest({monomial: factor // by for monomial, factor in self.terms})
        rest = {monomial: factor % by for monomial, factor in self.terms if factor % by}
        if not set(rest) - {()}:
            return even
        # floor((g P + c) / (g b)) = floor((P + floor(c / g)) / b)
        shared = math.gcd(by, *(factor for monomial, factor in rest.items() if monomial))
        rest = {monomial: factor // shared for monomial, factor in rest.items()}
        return even + _floor(Dim(rest), by // shared)

    def __neg__(self) -> int | Dim:
        return self * -1

    def __sub__(self, other: int | Dim) -> int | Dim:
        return self + -1 * other

    def __rsub__(self, other: int) -> int | Dim:
        return -1 * self + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dim):
            return False
        if self.terms == other.terms:
            return True
        if not (_quotients(self.terms) or _quotients(other.terms)):
            return False
        difference = self - other
        return isinstance(difference, int) and difference == 0

    def __hash__(self) -> int:
        # Equal expressions may be written differently; their values are the same everywhere.
        try:
            return self._hash
        except AttributeError:
            points = ({name: zlib.crc32(f"{name}{i}".encode()) for name in self.symbols()} for i in range(3))
            object.__setattr__(self, "_hash", hash(tuple(self.value(point) for point in points)))
            return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return (Dim, (dict(self.terms),))

    def symbols(self) -> frozenset[str]:
        """The names in the expression."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                found |= {atom} if isinstance(atom, str) else atom.of.symbols()
        return frozenset(found)

    def at(self, sizes: Mapping[str, int | Dim]) -> int | Dim:
        """The expression with some names replaced by sizes, known or not."""
        total: int | Dim = 0
        for monomial, factor in self.terms:
            term: int | Dim = factor
            for atom in monomial:
                inner = sizes.get(atom, Dim.symbol(atom)) if isinstance(atom, str) else atom.of.at(sizes) // atom.by
                term = inner * term
            total = term + total
        return total

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
        ConfigError: not an integer expression over names, a division by less than 1, or a number below 1.
    """
    if type(text) is int:
        return _positive(text, text)
    try:
        return _evaluate(ast.parse(text, mode="eval").body if isinstance(text, str) else None)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        hint = "write a number, a name, or an expression of them: 'L', '2*B', 'L - 2', 'L//2'"
        raise ConfigError("this is not a size", value=text, hint=hint) from None


def parse_shape(sizes: Iterable[int | str]) -> Shape:
    """A shape from its sizes as they are written.

    Raises:
        ConfigError: what is no size, or one that comes to less than 1.
    """
    return tuple(_positive(parse_dim(size), size) for size in sizes)


def ceil_div(dim: int | Dim, by: int) -> int | Dim:
    """How many pieces of `by` cover a size: (dim + by - 1)//by."""
    return (dim + (by - 1)) // by


def shape_text(shape: Sequence[int | Dim]) -> str:
    """A shape as a reader writes it: `(B, L, 768)`."""
    return f"({', '.join(map(str, shape))})"


def size_of(dim: int | Dim, sizes: Mapping[str, int]) -> int:
    """The number behind a size, where every name has one."""
    return dim if isinstance(dim, int) else dim.value(sizes)


def _positive(dim: int | Dim, given: Any) -> int | Dim:
    if isinstance(dim, int) and dim < 1:
        raise ConfigError("a size is at least 1", value=given)
    return dim


def _terms(value: int | Dim) -> tuple[tuple[Monomial, int], ...]:
    return (((), value),) if isinstance(value, int) else value.terms


def _simplest(terms: Mapping[Monomial, int]) -> int | Dim:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    dim = Dim(kept)
    return _constant(dim) if len(kept) > 1 and _quotients(dim.terms) else dim


def _quotients(terms: Iterable[tuple[Monomial, int]]) -> list[Quotient]:
    return [atom for monomial, _ in terms for atom in monomial if isinstance(atom, Quotient)]


def _constant(dim: Dim) -> int | Dim:
    """The number that an expression with quotients always is, if it is one: `L//2 + (L + 1)//2 - L` is 0.

    Within one class of residues an expression is a polynomial, and that is known from its degree + 1 points.
    """
    periods = {name: _period(dim, name) for name in sorted(dim.symbols())}
    first = dim.value(dict.fromkeys(periods, 1))
    corners = ({name: period * k - 1 + d for name, period in periods.items()} for k in (1, 3) for d in (0, 1))
    if any(dim.value(sizes) != first for sizes in corners):
        return dim
    ranges = [range(1, 1 + period * (_degree(dim, name) + 1)) for name, period in periods.items()]
    if math.prod(map(len, ranges)) > _MOST_POINTS:
        return dim
    points = (dict(zip(periods, values, strict=True)) for values in itertools.product(*ranges))
    return first if all(dim.value(sizes) == first for sizes in points) else dim


def _period(dim: Dim, name: str) -> int:
    """A step of one name after which all divisions leave the same remainders."""
    inner = [atom for atom in _quotients(dim.terms) if name in atom.of.symbols()]
    return math.lcm(*(atom.by * _period(atom.of, name) for atom in inner))


def _degree(dim: Dim, name: str) -> int:
    def of(atom: Atom) -> int:
        return int(atom == name) if isinstance(atom, str) else _degree(atom.of, name)

    return max((sum(map(of, monomial)) for monomial, _ in dim.terms), default=0)


def _floor(dim: Dim, by: int) -> int | Dim:
    """floor(dim / by), where nothing comes out even; floor((floor(P / a) + R) / b) = floor((P + a R) / (a b))."""
    inner = _quotients(dim.terms)
    if len(inner) == 1 and ((inner[0],), 1) in dim.terms:
        (quotient,) = inner
        rest = _simplest({monomial: factor for monomial, factor in dim.terms if monomial != (quotient,)})
        return (quotient.of + rest * quotient.by) // (quotient.by * by)
    return Dim({(Quotient(dim, by),): 1})


def _order(term: tuple[Monomial, int]) -> tuple[Any, ...]:
    """Products before the plain number, positive terms first: `L - 2`, not `-2 + L`."""
    monomial, factor = term
    return (not monomial, factor < 0, tuple(map(str, monomial)))


def _evaluate(node: ast.expr | None) -> int | Dim:
    match node:
        case ast.Name(id=name):
            return Dim.symbol(name)
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
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
                case ast.FloorDiv() if isinstance(b, int) and b > 0:
                    return a // b
    raise ValueError("not an integer expression")
