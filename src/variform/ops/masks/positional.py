"""Masks without tensors: bands of distances, global positions, segments. They hash, compare and print as written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from variform.errors import ConfigError, ShapeError
from variform.ops.masks.base import Band, Mask
from variform.ops.masks.view import View

__all__ = ["After", "Causal", "Coarse", "Global", "Segments", "Window"]

_MANY = 8
"""Runs of global positions beyond which a look-up is faster than comparisons."""


@dataclass(frozen=True, eq=False, repr=False)
class Causal(Mask):
    """A query attends to keys at its own position and before: k <= q."""

    def _visit(self, view: View) -> Tensor:
        return view.k_pos <= view.q_pos

    def band(self) -> Band:
        return (None, 0)


@dataclass(frozen=True, eq=False, repr=False)
class Window(Mask):
    """A query attends to keys at distance -ahead <= q - k <= back.

    Args:
        back: how many positions before the query are attended, besides its own; None for all of them.
        ahead: how many positions after it; None for all of them.
    """

    back: int | None
    ahead: int | None = 0

    def __post_init__(self) -> None:
        if (self.back or 0) < 0 or (self.ahead or 0) < 0:
            raise ConfigError(f"Window(back={self.back}, ahead={self.ahead}): both must be >= 0")

    def _visit(self, view: View) -> Tensor:
        # Additions on the two position vectors, not on their [Lq, Lk] difference.
        if self.back is None:
            return view.k_pos <= view.q_pos + self.ahead if self.ahead is not None else view.k_pos == view.k_pos
        near = view.k_pos >= view.q_pos - self.back
        return near if self.ahead is None else near & (view.k_pos <= view.q_pos + self.ahead)

    def band(self) -> Band:
        return (self.back, self.ahead)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Global(Mask):
    """The listed positions attend to every key and are attended by every query.

    Args:
        indices: positions >= 0; any iterable of integers, a 1-D tensor included.
    """

    indices: tuple[int, ...]

    def __init__(self, indices: Iterable[int] | Tensor) -> None:
        values = indices.tolist() if isinstance(indices, Tensor) else list(indices)
        listed = tuple(sorted({int(value) for value in values}))
        if listed and listed[0] < 0:
            raise ConfigError(f"Global positions must be >= 0, got {listed[0]}")
        object.__setattr__(self, "indices", listed)

    def _visit(self, view: View) -> Tensor:
        return self._hits(view.q_pos) | self._hits(view.k_pos)

    def _hits(self, positions: Tensor) -> Tensor:
        runs = _runs(self.indices)
        if len(runs) > _MANY and positions.dim() and not torch.compiler.is_compiling():
            return torch.isin(positions, torch.tensor(self.indices, device=positions.device))
        # Comparisons of runs: FlexAttention must trace this point by point.
        hits = positions != positions
        for first, last in runs:
            hits = hits | ((positions >= first) & (positions <= last))
        return hits


@dataclass(frozen=True, eq=False, repr=False)
class Segments(Mask):
    """A query attends to keys of its own segment; the ids come with the call (`q_seg`, `k_seg`).

    Errors: `ShapeError` when the call brings no segment ids.
    """

    @property
    def needs_segments(self) -> bool:
        return True

    def _visit(self, view: View) -> Tensor:
        if view.q_seg is None or view.k_seg is None:
            raise ShapeError("Segments() needs the segment ids of queries and keys; pass `segments`")
        return view.q_seg == view.k_seg


def _runs(values: tuple[int, ...]) -> list[tuple[int, int]]:
    """Sorted integers as closed runs: (0, 1, 2, 7) -> [(0, 2), (7, 7)]."""
    runs: list[tuple[int, int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return runs


@dataclass(frozen=True, eq=False, repr=False)
class After(Mask):
    """Another mask for the keys after the first `count`, which every query attends to; positions count from there.

    Args:
        part: the mask of the keys behind.
        count: keys in front.
    """

    part: Mask
    count: int
    _leaves: ClassVar[tuple[str, ...]] = ("part",)

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        self.part.check(batch, heads, q_len, k_len - self.count)

    @property
    def has_tensors(self) -> bool:
        return self.part.has_tensors

    @property
    def needs_segments(self) -> bool:
        return self.part.needs_segments

    def _visit(self, view: View) -> Tensor:
        columns = view.columns
        behind = replace(view, k_pos=view.k_pos - self.count, k_index=(columns - self.count).clamp(min=0))
        return (columns < self.count) | self.part._visit(behind)


@dataclass(frozen=True, eq=False, repr=False)
class Coarse(Mask):
    """Another mask applied to blocks: position p counts as p // block.

    `Coarse(Window(0), 64)` is attention within chunks of 64; block-sparse layouts such as BigBird's are coarse masks.

    Args:
        part: the mask between blocks.
        block: positions of a block.
    """

    part: Mask
    block: int
    _leaves: ClassVar[tuple[str, ...]] = ("part",)

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ConfigError(f"Coarse(block={self.block}): a block has at least one position")

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        self.part.check(batch, heads, -(-q_len // self.block), -(-k_len // self.block))

    @property
    def has_tensors(self) -> bool:
        return self.part.has_tensors

    @property
    def needs_segments(self) -> bool:
        return self.part.needs_segments

    def _visit(self, view: View) -> Tensor:
        blocks = {name: getattr(view, name) // self.block for name in ("q_pos", "k_pos")}
        rows, columns = view.rows // self.block, view.columns // self.block
        return self.part._visit(replace(view, **blocks, q_index=rows, k_index=columns))
