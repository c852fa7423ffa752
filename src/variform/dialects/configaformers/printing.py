"""The table of the later generation, which shows input streams with the batch size as they are declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from variform.core.dims import Dim, Shape
from variform.dialects.configaformers.shapes import BATCH
from variform.stack.trace import Row

NAMED_ANEW = frozenset(
    {
        "embedding",
        "activation",
        "dropout",
        "make_heads",
        "merge_heads",
        "shift",
        "down_sample",
        "up_sample",
        "cut_sequence",
        "attention_offset",
    }
)
"""Types that call the batch `BSZ` whatever their input calls it; all others keep the name."""


def as_declared(rows: Sequence[Row], declared: Mapping[str, Sequence[int | str]]) -> tuple[Row, ...]:
    """How the rows are printed: with the names that the inputs give to their batch size, as far as they are handed on.

    Args:
        rows: in which every batch size is called `BSZ`.
        declared: the shapes of the inputs as they are given; empty for the first generation, which shows `BSZ`.
    """
    names = {name: str(shape[0]) for name, shape in declared.items() if shape and isinstance(shape[0], str)}
    shown: list[Row] = []
    for row in rows if names else ():
        anew = row.name.lower() in NAMED_ANEW
        reads = tuple((name, shape, BATCH if anew else names.get(name, BATCH)) for name, shape in row.reads)
        longest = max(reads, key=lambda read: len(read[1]))
        batch = BATCH if anew else longest[2]
        names.update({name: batch for name, _ in row.writes})
        read = tuple((name, _called(shape, called)) for name, shape, called in reads)
        shown.append(
            replace(row, reads=read, writes=tuple((name, _called(shape, batch)) for name, shape in row.writes))
        )
    return tuple(shown) if names else tuple(rows)


def _called(shape: Shape, name: str) -> Shape:
    """A shape whose batch size has another name."""
    first = shape[0] if shape else 1
    return (Dim.symbol(name), *shape[1:]) if first == Dim.symbol(BATCH) and name != BATCH else shape
