"""Names for sizes: `B`, `L`, `L + 1`, `2 L`, `L // 2`, where runs at several (batch, length) leave no doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Batch and length of each run; lengths are None where the model's input has none."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...] | None

    def symbol(self, values: Sequence[int]) -> str:
        """A name that gives the size in every run; else the number in the first run."""
        name = self._simple(values)
        if name is None and not any(value % batch for value, batch in zip(values, self.batches, strict=True)):
            name = self._simple([value // batch for value, batch in zip(values, self.batches, strict=True)])
            name = None if name is None else f"B * ({name})" if " " in name else f"B * {name}"
        return name or str(values[0])

    def _simple(self, values: Sequence[int]) -> str | None:
        if len(set(values)) == 1:
            return str(values[0])
        if tuple(values) == self.batches:
            return "B"
        if self.lengths is None:
            return None
        for name, formula in _forms(values[0], self.lengths[0]):
            if all(formula(length) == value for length, value in zip(self.lengths, values, strict=True)):
                return name
        return None

    def shape(self, shapes: Sequence[Shape]) -> str:
        """A shape in words: `(B, L, 768)`."""
        if len({len(shape) for shape in shapes}) != 1 or len(shapes) != len(self.batches):
            return _text([str(size) for size in shapes[0]])
        return _text([self.symbol(values) for values in zip(*shapes, strict=True)])


def _forms(value: int, length: int) -> list[tuple[str, Callable[[int], int]]]:
    """What `value` may be of `length`, likeliest first."""
    shift = value - length
    forms: list[tuple[str, Callable[[int], int]]] = [("L", lambda n: n)]
    if shift > 0:
        forms.append((f"L + {shift}", lambda n: n + shift))
    if value and value % length == 0:
        factor = value // length
        forms.append((f"{factor} L", lambda n: n * factor))
    if value and length >= value:
        for divisor in sorted({length // value, -(-length // value)}):
            forms.append((f"L // {divisor}", lambda n, d=divisor: n // d))  # type: ignore[misc]
            forms.append((f"ceil(L / {divisor})", lambda n, d=divisor: -(-n // d)))  # type: ignore[misc]
    if shift < 0:
        forms.append((f"L - {-shift}", lambda n: n + shift))
    return forms


def _text(sizes: Sequence[str]) -> str:
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
