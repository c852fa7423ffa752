"""Linear attention: a feature map in place of the softmax, so that time and decode state do not grow with length."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can
from variform.core.registry import register
from variform.errors import ShapeError
from variform.ops.chunks import grouped
from variform.ops.linear_attention import (
    LinearState,
    cosine_features,
    elu_features,
    kernel_attention,
    linear_state,
)
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
        q, k = _without_padding(q, sides.q_valid), _without_padding(k, sides.k_valid)
        return _attend(elu_features(q), elu_features(k), v, self.causal, sides)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """The running sums, of constant size."""
        return linear_state(batch, heads, dim_key, dim_value, like.dtype, like.device)._asdict()


@register("cosformer")
class CosformerAttention(Attention):
    """Linear attention that fades with the distance (cosFormer, Qin et al. 2022, arXiv:2202.08791).

    out_i = sum_j w_ij v_j / sum_j w_ij with w_ij = relu(q_i)^T relu(k_j) cos(pi (i - j) / (2 M)), over j <= i when
    causal, where M is the longest sequence: phi_i(x) = relu(x) (cos(pi i / 2M), sin(pi i / 2M)). i and j are positions.
    A query that sees no key, or to whose features none answers, gets zeros.

    Shapes:
        q: [B, H, Lq, D], k: [B, Hk, Lk, D], v: [B, Hk, Lk, Dv] -> [B, H, Lq, Dv]; Lq == Lk when causal

    Args:
        max_seq_len: M; longer sequences are refused, because weights would turn negative.
        causal: position i attends to positions <= i.
    """

    can: ClassVar[Can] = Can(attention_mask=False)
    stateful: ClassVar[bool] = True
    takes_positions: ClassVar[bool] = True

    def __init__(self, max_seq_len: Annotated[int, Field(gt=0)] = INHERIT, causal: bool = inherit(False)) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything before this chunk as well."""
        if max(q.shape[2], k.shape[2]) > self.max_seq_len:
            raise ShapeError(
                f"cosformer was built for max_seq_len={self.max_seq_len} tokens, and gets {q.shape[2]} queries and "
                f"{k.shape[2]} keys; give it a larger max_seq_len"
            )
        q, k = _without_padding(q, sides.q_valid), _without_padding(k, sides.k_valid)
        q = cosine_features(q, _positions(sides.q_positions, sides.q_valid), self.max_seq_len)
        k = cosine_features(k, _positions(sides.k_positions, sides.k_valid), self.max_seq_len)
        return _attend(q, k, v, self.causal, sides)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """The running sums, of constant size."""
        return linear_state(batch, heads, 2 * dim_key, dim_value, like.dtype, like.device)._asdict()


def _without_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """Before the features are made: what stands at padding may have none, and no gradient."""
    return x if valid is None else x.masked_fill(~valid[:, None, :, None], 0)


def _positions(given: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """Positions counted over real tokens where none are given, so that padding changes nothing."""
    return (valid.cumsum(-1) - 1).clamp(min=0) if given is None and valid is not None else given


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, sides: Sides) -> Tensor | tuple[Tensor, State]:
    """Attend with features of queries and keys, which may have fewer heads than the queries."""
    heads, groups, state = q.shape[1], q.shape[1] // k.shape[1], sides.state
    past = None
    if state is not None:
        s, z = grouped((state["s"], state["z"]), heads)
        past = LinearState(s, z, state["segment"])
    k, v = grouped((k, v), heads)
    out, new = kernel_attention(
        q,
        k,
        v,
        causal=causal,
        k_valid=sides.k_valid,
        q_segments=sides.q_segments,
        k_segments=sides.k_segments,
        state=past,
    )
    if state is None or new is None:
        return out
    return out, {"s": new.s[:, ::groups], "z": new.z[:, ::groups], "segment": new.segment}
