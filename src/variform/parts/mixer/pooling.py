"""Averages over a neighbourhood in place of attention."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.parts.grid import from_grid, grid_of, near_grid, refuse_unable, to_grid
from variform.parts.kinds import Mixer, Streams

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@register("pooling")
class Pooling(Mixer):
    """PoolFormer's mixing (Yu et al. 2021, arXiv:2111.11418): y = avg_pool(x) - x over a grid of tokens.

    Windows of `pool_size` x `pool_size` tokens start every `stride` tokens, `padding` of them outside the grid; a
    mean is over the tokens inside. A token takes the window whose centre is nearest, the earlier one of two.

    Shapes:
        x: [B, L, dim] -> [B, L, dim], L a square number unless `grid` is given

    Args:
        dim: features in and out.
        pool_size: side of a window in tokens.
        stride: distance of neighbouring windows in tokens.
        padding: how far windows reach outside the grid, at most half a window; `pool_size // 2` by default.
        grid: rows and columns; a square by default.
        dropout: probability of zeroing a feature of the result, in training.

    Errors: a length that is no square, or a grid smaller than a window.
    """

    can: ClassVar[Can] = Can(False, False, False, False, False, decode=False)

    def __init__(
        self,
        dim: Size = INHERIT,
        pool_size: Size = 3,
        stride: Size = 1,
        padding: Annotated[int, Field(ge=0)] | None = None,
        grid: tuple[Size, Size] | None = None,
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.pool_size = pool_size
        self.stride = stride
        self.padding = pool_size // 2 if padding is None else padding
        self.grid = grid
        self.dropout = dropout

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """No window lies outside the grid."""
        size, padding = facts["pool_size"], facts["padding"]
        if padding is None or padding <= size // 2:
            return []
        message = f"is at most half of pool_size = {size}: a window must hold a token"
        return [Problem("padding", message, padding, f"at most {size // 2}")]

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """A given grid has one length."""
        can = cls.can
        return can if args["grid"] is None else Can(False, False, False, False, False, lengths=False, decode=False)

    @classmethod
    def near_length(cls, args: Facts, length: int) -> int:
        """Square numbers, or the grid's own."""
        return near_grid(length, args["grid"])

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Take the mean of the neighbourhood, and take away the token."""
        refuse_unable(self, streams)
        grid = grid_of(x.shape[1], self.grid, self)
        if min(grid) + 2 * self.padding < self.pool_size:
            raise ShapeError(
                f"windows of {self.pool_size} x {self.pool_size} tokens with padding {self.padding} do not fit a grid "
                f"of {grid[0]} x {grid[1]}; take a smaller pool_size, or padding={self.pool_size // 2}"
            )
        tokens = to_grid(x, grid)
        means = F.avg_pool2d(tokens, self.pool_size, self.stride, self.padding, count_include_pad=False)
        if means.shape[2:] != grid or self.stride > 1:
            for axis, size in ((2, grid[0]), (3, grid[1])):
                means = means.index_select(axis, self._nearest(size, means.shape[axis], x.device))
        y = from_grid(means - tokens)
        return F.dropout(y, self.dropout) if self.dropout and self.training else y

    def _nearest(self, size: int, windows: int, device: torch.device) -> Tensor:
        """The window of each place along an axis."""
        doubled = 2 * torch.arange(size, device=device) + 2 * self.padding - (self.pool_size - 1)
        nearest = torch.div(doubled + self.stride - 1, 2 * self.stride, rounding_mode="floor")
        return nearest.clamp(0, windows - 1)
