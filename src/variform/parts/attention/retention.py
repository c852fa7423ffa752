"""Retention: linear attention that fades at fixed rates."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.ops.gated_linear_attention import decayed_attention, gated_state
from variform.parts.attention.recurrent import ABLE, real_tokens, run_recurrence
from variform.parts.kinds import Attention, Norm, Sides, State

Size = Annotated[int, Field(gt=0)]


@register("retention")
class RetentionAttention(Attention):
    """Retention: linear attention whose history fades at a fixed rate a head (Sun et al. 2023, arXiv:2307.08621).

    out_i = norm(sum_j g_h^|i - j| (q_i^T k_j / sqrt(D)) v_j), over j <= i when causal, with g_h = 1 - 2^(-5 - h). The
    rotation of queries and keys that the paper has is the mixer's slot `rotation`. Padding does not count as distance.

    Shapes:
        q: [B, H, L, D], k: [B, Hk, L, D], v: [B, Hk, L, Dv] -> [B, H, L, Dv]

    Args:
        heads: number of query heads, each with a rate of its own.
        dim_head: features of one head.
        norm: a norm of each head's result; none when None.
        causal: position i attends to positions <= i.
    """

    can: ClassVar[Can] = ABLE
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        heads: Size = INHERIT,
        dim_head: Size = INHERIT,
        norm: Norm | None = use("rms_norm"),
        causal: bool = inherit(False),
    ) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        self.norm = norm
        self.causal = causal

    @classmethod
    def value_size(cls, args: Facts) -> int | None:
        """As many as a query, for the norm."""
        return None if args["norm"] is None else int(args["dim_head"])

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm sees the features of a head."""
        return {"dim": facts["dim_head"]}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything before this chunk as well."""
        q, k, v = real_tokens(q, k, v, sides, self.heads, None if self.norm is None else self.dim_head)
        k = k * k.shape[-1] ** -0.5
        rates = torch.arange(self.heads, dtype=torch.float64, device=q.device).add(5).neg().exp2().neg().log1p()
        fading = rates.to(torch.float32 if q.dtype.itemsize < 4 else q.dtype)[:, None].expand(*q.shape[:3])
        own = None if self.causal else (q * k).sum(-1, keepdim=True) * v
        return run_recurrence(decayed_attention, (q, k, v, fading), own, self.norm, sides)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """The faded sum, of constant size."""
        return gated_state(batch, self.heads, dim_key, dim_value, like.dtype, like.device)._asdict()
