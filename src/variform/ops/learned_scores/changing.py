"""The base of modifiers that are no added bias."""

from __future__ import annotations

import torch
from torch import Tensor

from variform.ops.scores import ScoreMod


class Changing(ScoreMod):
    """A modifier that is not an added bias, and has no point-wise form."""

    @property
    def is_additive(self) -> bool:
        return False

    @property
    def is_pointwise(self) -> bool:
        return False

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return self.apply_seen(scores, None, q_pos, k_pos)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> None:
        return None

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> None:
        return None
