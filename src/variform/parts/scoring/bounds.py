"""Changes of scores by scores alone: bounded ones, and heads that mix theirs."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.ops.learned_scores import TalkingScores
from variform.ops.scores import ScoreMod, SoftCap
from variform.parts.kinds import Scoring, Sides

Size = Annotated[int, Field(gt=0)]


@register("soft_cap")
class SoftCapScores(Scoring):
    """Scores are bounded smoothly (Gemma 2, arXiv:2408.00118): S <- value * tanh(S / value).

    Args:
        value: the bound.
    """

    def __init__(self, value: Annotated[float, Field(gt=0)] = 50.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod:
        """The cap."""
        return SoftCap(self.value)


@register("talking_heads")
class TalkingHeadScores(Scoring):
    """Heads add one another's scores (talking heads, Shazeer et al. 2020, arXiv:2003.02436).

    S_h <- S_h + sum_g W_hg S_g.

    Args:
        heads: number of query heads.
    """

    first: ClassVar[bool] = True

    def __init__(self, heads: Size = INHERIT) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every head hears itself."""
        nn.init.eye_(self.weight)

    def forward(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod:
        """The mixing with the current weights."""
        return TalkingScores(self.weight)
