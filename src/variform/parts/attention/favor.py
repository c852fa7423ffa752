"""FAVOR+: softmax attention approximated with positive random features, in time linear in the length."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can
from variform.core.registry import register
from variform.ops.chunks import grouped
from variform.ops.favor import FavorState, Features, favor_attention, favor_state
from variform.parts.attention.random_features import RandomFeatures
from variform.parts.kinds import Attention, Sides, State

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@register("favor")
class FavorAttention(Attention):
    """Softmax attention through positive orthogonal random features (Choromanski et al. 2020, arXiv:2009.14794).

    out_i = phi(q_i)^T sum_j phi(k_j) v_j^T / (phi(q_i)^T sum_j phi(k_j)), over j <= i when causal (prefix sums over the
    sequence), where E[phi(q)^T phi(k)] = exp(q^T k / sqrt(D)). With x' = x / D^(1/4), directions w_1 .. w_m:

    - sm_orf: phi(x)_r = exp(w_r^T x' - |x'|^2 / 2), w orthogonal, as long as Gaussian vectors are;
    - sm_hyp: the same for w_r and -w_r, m / 2 directions;
    - sm_reg: as sm_hyp, every w_r of length sqrt(D). The paper's regularised kernel: the mean is
      smaller than exp(q^T k / sqrt(D)), the less so the larger D is, and so is the variance.

    A query that sees no key gets zeros. The features are saved with the model.

    Shapes:
        q: [B, H, Lq, D], k: [B, Hk, Lk, D], v: [B, Hk, Lk, Dv] -> [B, H, Lq, Dv]; Lq == Lk when causal

    Args:
        dim_head: D; None takes it from the first input.
        dim_features: m; ceil(D (1 + log2 D)), made even, by default.
        feature_map: "sm_reg", "sm_hyp" or "sm_orf".
        iter_before_redraw: draw the features anew after this many calls in training; None keeps them.
        normalize_inputs: scale each q and k to the length sqrt(D) first, which bounds the features.
        epsilon: added to each token's features, relative to its largest one.
        dropout: probability of zeroing an output feature, in training.
        causal: position i attends to positions <= i.
    """

    can: ClassVar[Can] = Can(attention_mask=False)
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        dim_head: Size | None = INHERIT,
        dim_features: Size | None = None,
        feature_map: Features = "sm_reg",
        iter_before_redraw: Size | None = None,
        normalize_inputs: bool = False,
        epsilon: Annotated[float, Field(ge=0)] = 1e-6,
        dropout: Rate = 0.0,
        causal: bool = inherit(False),
    ) -> None:
        super().__init__()
        self.feature_map = RandomFeatures(
            dim=dim_head, count=dim_features, kind=feature_map, every=iter_before_redraw, normalize=normalize_inputs
        )
        self.epsilon = epsilon
        self.dropout = dropout
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything before this chunk as well."""
        if sides.q_valid is not None:
            q = q.masked_fill(~sides.q_valid[:, None, :, None], 0)
        if sides.k_valid is not None:
            k = k.masked_fill(~sides.k_valid[:, None, :, None], 0)
        groups, state = q.shape[1] // k.shape[1], sides.state
        (log_q, _), (log_k, offset) = self.feature_map(q, k)
        log_k, offset, v = grouped((log_k, offset, v), q.shape[1])
        past = None
        if state is not None:
            s, scale = grouped((state["s"], state["scale"]), q.shape[1])
            past = FavorState(s, scale, state["segment"])
        out, new = favor_attention(
            log_q,
            log_k,
            v,
            causal=self.causal,
            offset=offset,
            epsilon=self.epsilon,
            k_valid=sides.k_valid,
            q_segments=sides.q_segments,
            k_segments=sides.k_segments,
            state=past,
        )
        out = functional.dropout(out, self.dropout, self.training)
        if state is None or new is None:
            return out
        return out, {"s": new.s[:, ::groups], "scale": new.scale[:, ::groups], "segment": new.segment}

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """The running sums, of constant size."""
        return favor_state(batch, heads, self.feature_map.count, dim_value, like.dtype, like.device)._asdict()
