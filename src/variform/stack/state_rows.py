"""Rows of a decode state taken out, repeated or put into another order, as beam search needs it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from variform.errors import ShapeError
from variform.parts.kinds import State


def select_rows(state: State, rows: Tensor, batch: int) -> State:
    """The decode state whose row i is row `rows[i]` of another, which stays as it is.

    Every tensor of a state has the rows on its first axis, each once or several times in a row (a part that runs over
    several sequences a row), or holds for all of them and has size 1 there.

    Shapes:
        rows: [R] integers in [0, batch)

    Args:
        state: of a model, or of an encoder-decoder.
        rows: which rows, in order; a row may be taken several times.
        batch: how many rows there are.

    Raises:
        ShapeError: a tensor that has another number of rows.
    """
    selected: State = _select(state, rows, batch)
    return selected


def _select(entry: Any, rows: Tensor, batch: int) -> Any:
    if isinstance(entry, Tensor):
        if entry.dim() == 0 or (entry.shape[0] == 1 and batch > 1):
            return entry
        if entry.shape[0] == batch:
            return entry.index_select(0, rows.to(entry.device))
        if entry.shape[0] and entry.shape[0] % batch == 0:
            return entry.view(batch, -1, *entry.shape[1:]).index_select(0, rows.to(entry.device)).flatten(0, 1)
        raise ShapeError(f"a decode state of {batch} rows holds a tensor of shape {list(entry.shape)}: rows come first")
    if isinstance(entry, dict):
        selected = {name: _select(value, rows, batch) for name, value in entry.items()}
        # The copy shares no buffers with what it was taken from, so neither makes the other void.
        return {**selected, "clock": [entry["turn"]]} if "clock" in entry else selected
    if isinstance(entry, tuple):
        return tuple(_select(value, rows, batch) for value in entry)
    return entry
