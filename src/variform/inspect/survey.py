"""Measuring at a few small sizes, making formulas of the numbers, and trying these at sizes that are far away."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from variform.core.dims import Quotient
from variform.inspect.fit import Basis, Point, monomials
from variform.inspect.polynomial import Atom, Expression

Numbers = dict[str, tuple[int, ...]]
"""What is measured, by path."""

REFUSED = (ValueError, RuntimeError, IndexError)
"""What models raise at sizes that they do not take."""

_FAR = (4099, 4096, 2039, 2048, 1021, 1024, 509, 512, 251, 256, 127, 128, 61, 64, 31, 32, 19, 16, 11, 8)
_CHECKS = 2
_PATIENCE = 40
_IDLE = 100
_MOST = 64


@dataclass(frozen=True)
class Sizes:
    """The names that costs depend on.

    Args:
        batches: sizes of batches; costs grow at most linearly with them.
        lengths: all others.
        quotients: floor divisions of lengths that occur.
        longest: the largest length; None for no limit.
    """

    batches: tuple[str, ...]
    lengths: tuple[str, ...]
    quotients: tuple[Quotient, ...] = ()
    longest: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return (*self.batches, *self.lengths)

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """What formulas are made of beside the batch sizes."""
        return (*self.lengths, *self.quotients)


@dataclass(frozen=True)
class Survey:
    """Formulas by path.

    Args:
        formulas: one for each number that was measured; None where no polynomial gives all measurements.
        points: the sizes at which was measured; the last ones are those that tried the formulas.
    """

    formulas: Mapping[str, tuple[Expression | None, ...]]
    points: tuple[Point, ...]


def survey(measure: Callable[[Point], Numbers], sizes: Sizes, known: Sequence[tuple[Point, Numbers]] = ()) -> Survey:
    """Find what numbers depend on sizes, and how.

    Args:
        measure: gives the numbers at a point; it raises where the model does not take these sizes.
        sizes: the names.
        known: measurements that the formulas must give too.

    Raises:
        ValueError, RuntimeError, IndexError: what the measurement raised, where it never succeeded.
    """
    candidates = monomials(sizes.batches, sizes.atoms)
    basis = Basis(candidates if len(candidates) <= _MOST else monomials(sizes.batches, ()))
    found = _fill(basis, measure, sizes)
    checks = [*_far(measure, sizes), *known]
    return Survey(_formulas(basis, found, checks), (*basis.points, *(point for point, _ in checks)))


def _fill(basis: Basis, measure: Callable[[Point], Numbers], sizes: Sizes) -> list[Numbers]:
    """Measure until the basis is full, or no more sizes tell anything new."""
    found: list[Numbers] = []
    refusal: Exception | None = None
    for tries in _pools(sizes):
        refused = idle = 0
        for point in tries:
            if basis.is_full or refused == _PATIENCE or idle == _IDLE:
                break
            if not basis.tells_more(point):
                idle += 1
                continue
            idle = 0
            try:
                numbers = measure(point)
            except REFUSED as error:
                refusal, refused = error, refused + 1
                continue
            basis.add(point)
            found.append(numbers)
    if not found and refusal is not None:
        raise refusal
    return found


def _pools(sizes: Sizes) -> Iterator[Iterator[Point]]:
    """Small sizes, odd ones first, then multiples of 64 for models that take nothing else."""
    longest = sizes.longest or 1 << 16
    low = 5 if longest > 16 else 1
    spread = 4 * max([quotient.by for quotient in sizes.quotients], default=2) + 8
    numbers = range(low, min(longest, low + spread) + 1)
    if len(sizes.lengths) <= 1:
        odd_first = sorted(numbers, key=lambda n: n % 2 == 0)
        for lengths in (odd_first, range(64, min(longest, 1024) + 1, 64)):
            yield (
                {**dict.fromkeys(sizes.batches, b), **dict.fromkeys(sizes.lengths, n)} for n in lengths for b in (2, 3)
            )
    for lengths in (numbers, range(64, min(longest, 1024) + 1, 64)):
        yield _drawn(sizes, (2, 3), lengths)


def _drawn(sizes: Sizes, batches: Sequence[int], lengths: Sequence[int]) -> Iterator[Point]:
    """Sizes drawn independently, the same ones each time."""
    source = random.Random(0)
    if not lengths:
        return
    for _ in range(2000):
        drawn = {name: source.choice(batches) for name in sizes.batches}
        yield {**drawn, **{name: source.choice(lengths) for name in sizes.lengths}}


def _far(measure: Callable[[Point], Numbers], sizes: Sizes) -> list[tuple[Point, Numbers]]:
    """Measurements at the largest two sizes that the model takes: windows and tables show there."""
    found: list[tuple[Point, Numbers]] = []
    lengths = [n for n in _FAR if n <= (sizes.longest or _FAR[0])]
    if sizes.longest is not None and sizes.longest < _FAR[0]:
        lengths.insert(0, sizes.longest)
    for size in lengths if sizes.lengths else (4, 5):
        own = {name: size - 2 * place if size > 64 else size for place, name in enumerate(sizes.lengths)}
        point = {**dict.fromkeys(sizes.batches, 5), **own}
        try:
            found.append((point, measure(point)))
        except REFUSED:
            continue
        if len(found) == _CHECKS:
            break
    return found


def _formulas(
    basis: Basis, found: list[Numbers], checks: Sequence[tuple[Point, Numbers]]
) -> dict[str, tuple[Expression | None, ...]]:
    """Solve for all distinct columns of numbers at once; what a check contradicts has no formula."""
    columns: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    places: dict[str, list[int]] = {}
    for path in found[0] if found else ():
        for index in range(len(found[0][path])):
            values = tuple(numbers[path][index] for numbers in found)
            wanted = tuple(numbers[path][index] for _, numbers in checks)
            places.setdefault(path, []).append(columns.setdefault((values, wanted), len(columns)))
    solved = basis.solve(list(zip(*(values for values, _ in columns), strict=True)))
    points = [point for point, _ in checks]
    good = [
        formula if all(formula.exact(p) == value for p, value in zip(points, wanted, strict=True)) else None
        for formula, (_, wanted) in zip(solved, columns, strict=True)
    ]
    return {path: tuple(good[column] for column in own) for path, own in places.items()}
