"""Tokens that hide other tokens from those that follow."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from variform.core.part import Can
from variform.core.registry import register
from variform.ops.learned_scores import Suppression
from variform.ops.scores import ScoreMod
from variform.parts.kinds import Scoring, Sides


@register("selective")
class SelectiveScores(Scoring):
    """Selective attention (Leviathan et al. 2024, arXiv:2410.02703): tokens hide earlier ones from those that follow.

    S_ij <- S_ij - sum over i' < i of relu(S_i'j of the first head), except for j = i' and for the first token of a row.
    Causal only. The sum is kept while decoding.
    """

    can: ClassVar[Can] = Can(packed=False, cross=False)
    positioned: ClassVar[bool] = True
    accumulates: ClassVar[bool] = True

    def forward(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod:
        """The modifier of a call."""
        q_pos, k_pos, length = sides.q_positions, sides.k_positions, k.shape[2]
        places = torch.arange(length, device=k.device)
        q_pos = places[: q.shape[2]] if q_pos is None else q_pos
        k_pos = places if k_pos is None else k_pos
        own = q_pos.unsqueeze(-1) == k_pos.unsqueeze(-2)
        own = own if own.dim() == 3 else own[None]
        if sides.k_valid is None:
            first = (places == 0)[None]
        else:
            first = sides.k_valid & (sides.k_valid.cumsum(-1) == 1)
        exempt = own | first.unsqueeze(1)
        if sides.q_valid is not None:
            exempt = exempt | ~sides.q_valid.unsqueeze(-1)
        return Suppression(exempt, kept)
