"""Gated linear attention: the history fades at rates that depend on the token."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.ops.gated_linear_attention import gated_attention, gated_state
from variform.parts.attention.recurrent import ABLE, real_tokens, run_recurrence
from variform.parts.kinds import Attention, Norm, Sides, State

Size = Annotated[int, Field(gt=0)]


@register("gated_linear")
class GatedLinearAttention(Attention):
    """Gated linear attention: the history fades at rates that depend on the token (Yang et al. 2023, arXiv:2312.06635).

    S_t = diag(a_t) S_{t-1} + k_t v_t^T, out_t = norm(S_t^T q_t / sqrt(D)), with a_t = sigmoid(A_h v_t + b_h)^(1/tau).
    A gate is a map of low rank of the token, as in the paper, where the head's projection of values is its first half:
    of what a head knows of a token, they are what neither rotations nor norms touch. Without `causal` both directions
    are added, each token's own part once.

    Shapes:
        q: [B, H, L, D], k: [B, Hk, L, D], v: [B, Hk, L, D] -> [B, H, L, D]

    Args:
        heads: number of query heads, each with a gate of its own.
        dim_head: features of one head.
        temperature: tau; the larger, the slower the history fades.
        norm: a norm of each head's result; none when None.
        causal: position i attends to positions <= i.
    """

    can: ClassVar[Can] = ABLE
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        heads: Size = INHERIT,
        dim_head: Size = INHERIT,
        temperature: Annotated[float, Field(gt=0)] = 16.0,
        norm: Norm | None = use("rms_norm"),
        causal: bool = inherit(False),
    ) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        self.gate = nn.Parameter(torch.empty(heads, dim_head, dim_head))
        self.gate_bias = nn.Parameter(torch.empty(heads, 1, dim_head))
        self.temperature = temperature
        self.norm = norm
        self.causal = causal
        self.reset_parameters()

    @classmethod
    def value_size(cls, args: Facts) -> int | None:
        """As many as a query: gates are maps of values."""
        return int(args["dim_head"])

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm sees the features of a head."""
        return {"dim": facts["dim_head"]}

    def reset_parameters(self) -> None:
        """Normal weights; rates of sigmoid(0)^(1/tau) on average."""
        nn.init.normal_(self.gate, 0.0, self.dim_head**-0.5)
        nn.init.zeros_(self.gate_bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything before this chunk as well."""
        q, k, v = real_tokens(q, k, v, sides, self.heads, self.dim_head)
        q = q * q.shape[-1] ** -0.5
        fading = functional.logsigmoid(v @ self.gate + self.gate_bias) / self.temperature
        own = None if self.causal else (q * k).sum(-1, keepdim=True) * v
        return run_recurrence(gated_attention, (q, k, v, fading), own, self.norm, sides)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """The faded sum, of constant size."""
        return gated_state(batch, self.heads, dim_key, dim_value, like.dtype, like.device)._asdict()
