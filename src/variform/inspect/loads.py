"""What a check measures of a model: the load of each of its places, at one batch and length or at named sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from variform.core.spec import Spec
from variform.inspect.budget import Load
from variform.inspect.costing import Runs, asked_sizes, sizes_of
from variform.inspect.describe import GIB, OPTIMIZERS, Description, describe_model
from variform.inspect.fake import FakeModel
from variform.inspect.rows import params_by_path
from variform.stack.program import ProgramModel


@dataclass(frozen=True)
class Measured:
    """What a model costs.

    Args:
        loads: one a place, parents first; the first is the whole.
        description: the description, where batch and length say everything.
        fits: the largest batch that fits into a number of bytes, where that is known.
    """

    loads: list[Load]
    description: Description | None = None
    fits: Callable[[int], int] | None = None


def counted(model: FakeModel) -> Measured:
    """Parameters alone."""
    params, lines = params_by_path(model.tree), _lines(model)
    loads = [Load(path, _label(path, name, lines), params[path]) for path, name in _names(model)]
    return Measured(_above_lines(loads, lines))


def measured(
    model: FakeModel,
    resolved: Spec,
    batch: int,
    length: int | None,
    at: Mapping[str, int] | None,
    optimizer: str,
) -> Measured:
    """Parameters, operations and bytes, from runs.

    Args:
        model: built from stand-ins.
        resolved: its spec.
        batch: rows.
        length: tokens a row.
        at: sizes by name, in place of both.
        optimizer: whose values count as memory.

    Raises:
        ConfigError, ShapeError: the model does not take these sizes.
    """
    values = (2 + OPTIMIZERS[optimizer]) * model.dtype.itemsize
    lines = _lines(model)
    if at is None:
        described = describe_model(model, resolved, batch, length)
        loads = [
            Load(r.path, _label(r.path, r.name, lines), r.params, r.flops, values * r.params + r.activation_bytes)
            for r in described.rows
        ]
        return Measured(
            _above_lines(loads, lines), described, lambda size: described.largest_batch(size / GIB, optimizer)
        )
    sizes = sizes_of(model)
    figures = Runs(model, sizes).figures(asked_sizes(sizes, at))
    params = params_by_path(model.tree)
    loads = []
    for path, name in _names(model):
        flops, _, _, kept = figures[path]
        loads.append(Load(path, _label(path, name, lines), params[path], flops, values * params[path] + kept))
    return Measured(_above_lines(loads, lines))


def _above_lines(loads: list[Load], lines: Mapping[str, str]) -> list[Load]:
    """Without the parts below the lines of a program."""
    return [load for load in loads if not _ancestors(load.path) & lines.keys()] if lines else loads


def _ancestors(path: str) -> set[str]:
    steps = path.split(".")
    return {".".join(steps[:count]) for count in range(1, len(steps))}


def _names(model: FakeModel) -> list[tuple[str, str]]:
    return [(place.path, place.spec.name) for place in model.tree.walk()]


def _lines(model: FakeModel) -> dict[str, str]:
    """What lines of a program are called in its table, by path."""
    rows = model.part.table.rows if isinstance(model.part, ProgramModel) else ()
    return {row.path: f"{row.block}{', ' if row.block else ''}line {row.line} ({row.name})" for row in rows}


def _label(path: str, name: str, lines: Mapping[str, str]) -> str:
    return lines.get(path, name)
