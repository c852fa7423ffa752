"""A feedforward that looks at the neighbours on a grid."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.parts.activation import ACTIVATIONS, Activation
from variform.parts.feedforward.mlp import width_problems
from variform.parts.grid import from_grid, grid_of, near_grid, refuse_unable, to_grid
from variform.parts.kinds import FeedForward, Streams

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@register("conv2d")
class Conv2D(FeedForward):
    """The feedforward of PVTv2 (Wang et al. 2021, arXiv:2106.13797) and VAN (arXiv:2202.09741).

    y = W2 act(D3 * (W1 x)) over a grid of tokens, D3 a depthwise convolution of 3 x 3. It mixes neighbouring tokens,
    so that it is neither causal nor safe beside padding.

    Shapes:
        x: [B, L, dim] -> [B, L, dim], L a square number unless `grid` is given

    Args:
        dim: features in and out.
        hidden: inner features; `mult * dim` by default.
        mult: inner width as a multiple of `dim`, used when `hidden` is not given.
        activation: act.
        dropout: probability of zeroing a feature of the result, in training.
        grid: rows and columns; a square by default.

    Errors: a length that is no square.
    """

    can: ClassVar[Can] = Can(False, False, False, False, False, decode=False)

    def __init__(
        self,
        dim: Size = INHERIT,
        hidden: Size | None = None,
        mult: Annotated[float, Field(gt=0)] = 4.0,
        activation: Activation = "gelu",
        dropout: Rate = 0.0,
        grid: tuple[Size, Size] | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden or int(mult * dim)
        self.up = nn.Conv2d(dim, hidden, 1)
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.down = nn.Conv2d(hidden, dim, 1)
        self.act = ACTIVATIONS[activation]
        self.dropout = dropout
        self.grid = grid

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """There is an inner feature at least."""
        return width_problems(facts)

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
        """Transform each token with its neighbours."""
        refuse_unable(self, streams)
        tokens = to_grid(x, grid_of(x.shape[1], self.grid, self))
        y = from_grid(self.down(self.act(self.near(self.up(tokens)))))
        return F.dropout(y, self.dropout) if self.dropout and self.training else y
