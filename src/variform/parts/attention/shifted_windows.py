"""Softmax attention within the windows of a grid of tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError, nearest_divisors
from variform.ops.masks import ShiftedWindows
from variform.parts.attention.softmax import attend, backend_problems
from variform.parts.grid import grid_of, near_grid
from variform.parts.kinds import Attention, Sides

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@register("shifted_windows")
class ShiftedWindowAttention(Attention):
    """Softmax attention within windows of a grid of tokens (Swin, Liu et al. 2021, arXiv:2103.14030).

    The tokens are the points of a grid, row by row; each attends to those of its own window. With a shift the windows
    start `shift` points in, and what is cut off at the border forms smaller windows: Swin's cyclic shift with its mask.
    The bias `window` goes with it.

    Shapes:
        q: [B, H, L, D], k: [B, Hk, L, D], v: [B, Hk, L, Dv] -> [B, H, L, Dv], L = rows * columns

    Args:
        grid: rows and columns, multiples of the window; those of a square by default.
        window: points of a window along each axis.
        shift: by how many points the windows are moved, along each axis; below `window`.
        dropout: probability of dropping an attention weight, in training.
        scale: factor on Q K^T; D^-0.5 by default.
        backend: as for softmax attention.

    Errors: tokens that do not fill the grid, a square that windows do not tile.
    """

    can: ClassVar[Can] = Can(causal=False, packed=False, cross=False, decode=False)
    takes_scores: ClassVar[bool] = True

    def __init__(
        self,
        grid: tuple[Size, Size] | None = None,
        window: Size = 7,
        shift: Annotated[int, Field(ge=0)] = 0,
        dropout: Rate = 0.0,
        scale: Annotated[float, Field(gt=0)] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.grid = grid
        self.window = window
        self.shift = shift
        self.dropout = dropout
        self.scale = scale
        self.backend = backend

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Windows tile the grid, and the backend exists."""
        window, shift, found = facts["window"], facts["shift"], backend_problems(facts)
        for axis, size in zip(("rows", "columns"), facts["grid"] or (), strict=False):
            if size % window:
                message = f"windows must tile the grid's {size} {axis}"
                found.append(Problem("window", message, window, nearest_divisors(size, window)))
        if shift >= window:
            message = f"must lie below the window of {window}: a shift by a whole window changes nothing"
            found.append(Problem("shift", message, shift, f"Swin takes window // 2 = {window // 2}"))
        return found

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """A given grid has one length."""
        return cls.can if args["grid"] is None else replace(cls.can, lengths=False)

    @classmethod
    def near_length(cls, args: Facts, length: int) -> int:
        """Squares that the windows tile, or the grid's own."""
        window, side = args["window"], math.sqrt(length)
        return near_grid(length, args["grid"]) if args["grid"] else (max(1, round(side / window)) * window) ** 2

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        """Attend within the windows."""
        grid = grid_of(q.shape[2], self.grid, self)
        if grid[0] % self.window or grid[1] % self.window:
            near = self.near_length({"grid": None, "window": self.window}, q.shape[2])
            raise ShapeError(
                f"windows of {self.window} do not tile {grid[0]} x {grid[1]} tokens; a square near by that they tile "
                f"has {near}"
            )
        structure = ShiftedWindows(grid, self.window, self.shift)
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, sides, structure, self.scale, dropout, self.backend)
