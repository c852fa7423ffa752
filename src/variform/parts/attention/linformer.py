"""Linformer: keys and values projected along the sequence to a fixed number of them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.ops.ranks import front
from variform.parts.kinds import Attention, Sides
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("linformer")
class LinformerAttention(Attention):
    """Linformer attention (Wang et al. 2020, arXiv:2006.04768): softmax(Q (E K)^T / sqrt(D)) (F V).

    E and F are learned maps along the sequence, from its positions to `projected` of them, shared by the heads. A
    shorter sequence uses their first columns; padding takes no column, on either side. A row without a real key gives
    zeros. There is no causal form: each projected key holds all positions.

    Shapes:
        q: [B, H, Lq, D], k: [B, Hk, Lk, D], v: [B, Hk, Lk, Dv] -> [B, H, Lq, Dv]; Lk at most `max_seq_len`

    Args:
        max_seq_len: positions that the maps know.
        projected: keys and values that are left of them; a quarter by default.
        dropout: probability of dropping an attention weight, in training.

    Raises:
        ShapeError: more keys than `max_seq_len`.
    """

    can: ClassVar[Can] = Can(causal=False, attention_mask=False, packed=False, decode=False)

    def __init__(
        self,
        max_seq_len: Size = INHERIT,
        projected: Size | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.projected = projected or max(1, max_seq_len // 4)
        self.dropout = dropout
        self.E = Linear(max_seq_len, self.projected, bias=False)
        self.F = Linear(max_seq_len, self.projected, bias=False)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Projecting means fewer keys, not more."""
        size, most = facts["projected"], facts["max_seq_len"]
        if size is None or size <= most:
            return []
        return [Problem("projected", f"cannot be more than max_seq_len = {most}", size, f"nearest: {most}")]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        """Attend to the projected keys."""
        length, groups = k.shape[2], q.shape[1] // k.shape[1]
        if sides.q_valid is not None:
            q = q.masked_fill(~sides.q_valid[:, None, :, None], 0)  # padding may hold anything
        if length > self.max_seq_len:
            raise ShapeError(f"linformer has maps for {self.max_seq_len} positions, and there are {length} keys")
        if sides.k_valid is not None:
            own = front(sides.k_valid)
            k, v = own.gather(k), own.gather(v)
        k, v = self.E.weight[:, :length] @ k, self.F.weight[:, :length] @ v
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
