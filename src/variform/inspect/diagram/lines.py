"""The flow of a program: its blocks are the panels, its steps the boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from variform.core.dims import parse_shape, shape_text
from variform.core.spec import Spec
from variform.inspect.diagram.flow import Flow, Item, Panel
from variform.inspect.diagram.fold import fold, heading
from variform.inspect.diagram.settings import family, settings
from variform.stack.trace import Row, trace_lines
from variform.stack.values import input_values, tells_size


def program_flow(spec: Spec) -> Flow:
    """The flow of a resolved program that is a whole model; equal copies of a block are shown once."""
    shapes = {name: parse_shape(sizes) for name, sizes in spec["inputs"].items()}
    rows = trace_lines(spec["lines"], input_values(shapes)).rows
    inputs = tuple((name, shape_text(shape)) for name, shape in shapes.items() if not tells_size(name))
    return Flow(tuple(_panels(rows)), inputs, tuple(spec["outputs"]))


def items_of(rows: Sequence[Row]) -> tuple[Item, ...]:
    """One box a step."""
    return tuple(
        Item(
            title=row.name,
            family=family(row.op),
            detail=settings(row.op),
            reads=tuple(name for name, _ in row.reads if name not in _constants(row) and not tells_size(name)),
            writes=tuple((name, shape_text(shape)) for name, shape in row.writes),
        )
        for row in rows
    )


def _constants(row: Row) -> frozenset[str]:
    constants = getattr(row.op.part, "constants", None)
    return frozenset() if constants is None else frozenset(constants(row.op.args))


def _panels(rows: Sequence[Row]) -> Iterator[Panel]:
    for label, group in groupby(rows, key=lambda row: row.block):
        copies = [items_of(list(copy)) for _, copy in groupby(group, key=lambda row: row.repeat)]
        runs = fold(copies)
        for run in runs:
            which = heading(runs, run, "repeat")
            items = tuple(item for copy in copies[run.start : run.start + run.count] for item in copy)
            yield Panel(f"{label} ({which})" if which and label else label, run.times, items)
