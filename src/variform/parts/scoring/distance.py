"""Biases over distance that every query makes for itself."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from variform.core.inherit import INHERIT
from variform.core.part import Can
from variform.core.registry import register
from variform.errors import ShapeError
from variform.ops.learned_scores import DistanceCurves
from variform.ops.scores import ScoreMod
from variform.parts.kinds import Scoring, Sides
from variform.parts.scoring.gates import init_like_linear

Size = Annotated[int, Field(gt=0)]


@register("projected_distance")
class ProjectedDistance(Scoring):
    """Each query mixes learned curves over the distance to the past.

    S_ij <- S_ij + sum_n (W x_i + b)_hn bank[n, i - j]. Keys after the query, and those `reach` or more before it, are
    not moved.

    Args:
        dim: features of a token.
        heads: number of query heads.
        curves: how many are learned.
        reach: distances they know.
        std: standard deviation of the initial curves.
    """

    can: ClassVar[Can] = Can(cross=False)
    positioned: ClassVar[bool] = True

    def __init__(
        self,
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        curves: Size = 16,
        reach: Size = 1024,
        std: Annotated[float, Field(ge=0)] = 0.02,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.std = std
        self.bank = nn.Parameter(torch.empty(curves, reach))
        self.weight = nn.Parameter(torch.empty(heads * curves, dim))
        self.bias = nn.Parameter(torch.empty(heads * curves))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal curves; the map as torch draws linear ones."""
        nn.init.normal_(self.bank, 0.0, self.std)
        init_like_linear(self.weight, self.bias)

    def forward(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod:
        """The bias of these tokens."""
        if sides.x is None:
            raise ShapeError("projected_distance reads the mixer's input, which this caller of the attention lacks")
        mixed = functional.linear(sides.x, self.weight, self.bias)
        mixed = mixed.view(*mixed.shape[:2], self.heads, -1).transpose(1, 2)
        aligned = sides.q_positions is None and sides.k_positions is None
        bank = self.bank[:, : k.shape[2]] if aligned else self.bank
        return DistanceCurves(mixed, bank.to(mixed.dtype))
