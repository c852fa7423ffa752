"""The delta rule, with and without decay: what a key has stored is replaced."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.ops.delta_rule import delta_attention, unit_length
from variform.ops.gated_linear_attention import gated_state
from variform.parts.attention.recurrent import ABLE, each_token, real_tokens, run_recurrence
from variform.parts.kinds import Attention, Norm, Sides, State

Size = Annotated[int, Field(gt=0)]


@register("delta_rule")
class DeltaRuleAttention(Attention):
    """The delta rule: what a key has stored is replaced, not added to (DeltaNet, Yang et al. 2024, arXiv:2406.06484).

    S_t = (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, out_t = norm(S_t^T q_t), with q and k of length 1 after a SiLU,
    and the strength of writing b_t = sigmoid(w_h . v_t + c_h), a map of the token through the head's values. Without
    `causal` it is the mean of both directions.

    Shapes:
        q: [B, H, L, D], k: [B, Hk, L, D], v: [B, Hk, L, D] -> [B, H, L, D]

    Args:
        heads: number of query heads, each with a strength of its own.
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
        self.write = nn.Parameter(torch.empty(heads, dim_head))
        self.write_bias = nn.Parameter(torch.empty(heads, 1))
        self.norm = norm
        self.causal = causal
        self.reset_parameters()

    @classmethod
    def value_size(cls, args: Facts) -> int | None:
        """As many as a query: strengths are read off values."""
        return int(args["dim_head"])

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm sees the features of a head."""
        return {"dim": facts["dim_head"]}

    def reset_parameters(self) -> None:
        """Normal weights; half of the new value is written on average."""
        nn.init.normal_(self.write, 0.0, self.dim_head**-0.5)
        nn.init.zeros_(self.write_bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything before this chunk as well."""
        q, k, v = real_tokens(q, k, v, sides, self.heads, self.dim_head)
        strength = torch.sigmoid(each_token(v, self.write) + self.write_bias)
        both = None if self.causal else 0.5
        return run_recurrence(delta_attention, (unit_length(q), unit_length(k), v, strength), both, self.norm, sides)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """What is stored, of constant size."""
        return gated_state(batch, self.heads, dim_key, dim_value, like.dtype, like.device)._asdict()


@register("gated_delta_rule")
class GatedDeltaRuleAttention(Attention):
    """The delta rule with a state that fades (Gated DeltaNet, Yang et al. 2024, arXiv:2412.06464).

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, out_t = norm(S_t^T q_t), with q, k and b as for `delta_rule`,
    and a_t = exp(-A_h softplus(u_h . v_t + d_h)). Without `causal` it is the mean of both directions.

    Shapes:
        q: [B, H, L, D], k: [B, Hk, L, D], v: [B, Hk, L, D] -> [B, H, L, D]

    Args:
        heads: number of query heads, each with a strength and a rate of its own.
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
        self.write = nn.Parameter(torch.empty(heads, dim_head))
        self.write_bias = nn.Parameter(torch.empty(heads, 1))
        self.fade = nn.Parameter(torch.empty(heads, dim_head))
        self.fade_bias = nn.Parameter(torch.empty(heads, 1))
        self.log_rate = nn.Parameter(torch.empty(heads, 1))
        self.norm = norm
        self.causal = causal
        self.reset_parameters()

    @classmethod
    def value_size(cls, args: Facts) -> int | None:
        """As many as a query: strengths are read off values."""
        return int(args["dim_head"])

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm sees the features of a head."""
        return {"dim": facts["dim_head"]}

    def reset_parameters(self) -> None:
        """Normal weights; rates A from 1 to 16, and steps of 0.001 to 0.1 on average, both log-uniform over heads."""
        for weight in (self.write, self.fade):
            nn.init.normal_(weight, 0.0, self.dim_head**-0.5)
        nn.init.zeros_(self.write_bias)
        nn.init.uniform_(self.log_rate, 0.0, math.log(16))
        with torch.no_grad():
            step = self.fade_bias.uniform_(math.log(0.001), math.log(0.1)).exp()
            self.fade_bias.copy_(step.expm1().log())  # softplus of it is the step

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything before this chunk as well."""
        q, k, v = real_tokens(q, k, v, sides, self.heads, self.dim_head)
        strength = torch.sigmoid(each_token(v, self.write) + self.write_bias)
        fading = -self.log_rate.exp() * functional.softplus(each_token(v, self.fade) + self.fade_bias)
        both = None if self.causal else 0.5
        return run_recurrence(
            delta_attention, (unit_length(q), unit_length(k), v, strength, fading), both, self.norm, sides
        )

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """What is stored, of constant size."""
        return gated_state(batch, self.heads, dim_key, dim_value, like.dtype, like.device)._asdict()
