"""Linear attention: a feature map in place of the softmax, so that time and decode state do not grow with length."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from variform.core.inherit import inherit
from variform.core.part import Can
from variform.core.registry import register
from variform.ops.linear_attention import LinearState, linear_attention, linear_state
from variform.parts.kinds import Attention, Sides, State


@register("linear")
class LinearAttention(Attention):
    """Linear attention with features phi(x) = elu(x) + 1 (Katharopoulos et al. 2020, arXiv:2006.16236).

    out_i = phi(q_i)^T sum_j phi(k_j) v_j^T / (phi(q_i)^T sum_j phi(k_j)), over j <= i when causal. A query that sees
    no key gets zeros.

    Shapes:
        q: [B, H, Lq, D], k: [B, Hk, Lk, D], v: [B, Hk, Lk, Dv] -> [B, H, Lq, Dv]; Lq == Lk when causal

    Args:
        causal: position i attends to positions <= i.
    """

    can: ClassVar[Can] = Can(attention_mask=False)
    stateful: ClassVar[bool] = True

    def __init__(self, causal: bool = inherit(False)) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything before this chunk as well."""
        groups, state = q.shape[1] // k.shape[1], sides.state
        past = None if state is None else LinearState(state["s"], state["z"], state["segment"])
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if groups > 1 and past is not None:
            past = LinearState(past.s.repeat_interleave(groups, 1), past.z.repeat_interleave(groups, 1), past.segment)
        out, new = linear_attention(
            q,
            k,
            v,
            causal=self.causal,
            k_valid=sides.k_valid,
            q_segments=sides.q_segments,
            k_segments=sides.k_segments,
            state=past,
        )
        if state is None or new is None:
            return out
        return out, {"s": new.s[:, ::groups], "z": new.z[:, ::groups], "segment": new.segment}

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """The running sums, of constant size."""
        return linear_state(batch, heads, dim_key, dim_value, like.dtype, like.device)._asdict()
