"""Attention by large convolutions."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.parts.grid import from_grid, grid_of, near_grid, refuse_unable, to_grid
from variform.parts.kinds import Mixer, Streams

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class LargeKernel(nn.Module):
    """u * W(dilated(near(u))): a weight for each feature of each token from 21 x 21 tokens around it.

    Args:
        dim: features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, u: Tensor) -> Tensor:
        """Weigh [B, C, H, W]."""
        weights: Tensor = self.conv1(self.conv_spatial(self.conv0(u)))
        return u * weights


@register("visual")
class Visual(Mixer):
    """Large-kernel attention of the Visual Attention Network (Guo et al. 2022, arXiv:2202.09741).

    y = x + W2 LKA(gelu(W1 x)), LKA(u) = u * W3 (D7 * (D5 * u)) over a grid of tokens: D5 a depthwise convolution of
    5 x 5, D7 one of 7 x 7 with dilation 3, W maps of each token.

    Shapes:
        x: [B, L, dim] -> [B, L, dim], L a square number unless `grid` is given

    Args:
        dim: features in and out.
        grid: rows and columns; a square by default.
        dropout: probability of zeroing a feature of the result, in training.

    Errors: a length that is no square.
    """

    can: ClassVar[Can] = Can(False, False, False, False, False, decode=False)

    def __init__(self, dim: Size = INHERIT, grid: tuple[Size, Size] | None = None, dropout: Rate = 0.0) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), LargeKernel(dim), nn.Conv2d(dim, dim, 1))
        self.grid = grid
        self.dropout = dropout

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
        """Weigh the tokens by what is around them."""
        refuse_unable(self, streams)
        y = x + from_grid(self.block(to_grid(x, grid_of(x.shape[1], self.grid, self))))
        return F.dropout(y, self.dropout) if self.dropout and self.training else y
