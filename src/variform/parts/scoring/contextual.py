"""Positions that count by content."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.part import Can
from variform.core.registry import register
from variform.ops.learned_scores import ContextualBias
from variform.ops.scores import ScoreMod
from variform.parts.kinds import Scoring, Sides

Size = Annotated[int, Field(gt=0)]


@register("cope")
class ContextualPositions(Scoring):
    """Contextual position encoding (CoPE, Golovneva et al. 2024, arXiv:2405.18719).

    p_ij = sum over j <= t <= i of sigmoid(S_it), at most `positions` - 1; S_ij <- S_ij + q_i . e(p_ij), where e is
    linear between the learned e_0, e_1, ...

    Args:
        positions: how many are learned.
        heads: number of query heads.
        dim_head: features of a query.
        soft: average the e_n, weighted by softmax(-|p_ij - n| / temperature), instead.
        temperature: of that average.
        mixing: heads mix the scores that the gates read.
        scale: factor on q_i . e, where queries have been made longer than those that e is for.
    """

    can: ClassVar[Can] = Can(cross=False)

    def __init__(
        self,
        positions: Size = 16,
        heads: Size = INHERIT,
        dim_head: Size = INHERIT,
        soft: bool = False,
        temperature: Annotated[float, Field(gt=0)] = 0.05,
        mixing: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(positions, dim_head))
        self.mixing = nn.Parameter(torch.empty(heads, heads)) if mixing else None
        self.temperature = temperature if soft else None
        self.scale = scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No positions at first; heads are mixed at random."""
        nn.init.zeros_(self.embedding)
        if self.mixing is not None:
            nn.init.kaiming_uniform_(self.mixing, a=math.sqrt(5))

    def forward(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod:
        """The bias of these queries."""
        products = q @ self.embedding.t().to(q.dtype)
        return ContextualBias(products if self.scale == 1.0 else products * self.scale, self.mixing, self.temperature)
