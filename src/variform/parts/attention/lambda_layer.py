"""Lambda layers: a context summed up as linear functions, which are applied to the queries."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can
from variform.core.registry import register
from variform.errors import ShapeError
from variform.ops.content_lambda import content_lambda
from variform.ops.ranks import front
from variform.parts.kinds import Attention, Sides

Size = Annotated[int, Field(gt=0)]


@register("lambda")
class LambdaAttention(Attention):
    """A lambda layer (LambdaNetworks, Bello 2021, arXiv:2102.08602) with content and position lambdas.

    y_n = (sum_m softmax_m(k)_m v_m^T + sum_m E_{m-n} v_m^T)^T q_n: the softmax of the keys runs over the positions m,
    feature by feature, and E holds one learned vector for each distance. When causal, both sums and the softmax run
    over m <= n. Distances count real tokens. The scores q_n . E are computed for all pairs: time O(L^2).

    Shapes:
        q, k: [B, H, L, dim_head], v: [B, H, L, Dv] -> [B, H, L, Dv]; L at most `max_seq_len`

    Args:
        max_seq_len: the longest sequence.
        dim_head: features of a query.
        causal: only positions up to the query's own.
        dropout: probability of zeroing a number of the result, in training.

    Raises:
        ShapeError: a longer sequence.
    """

    can: ClassVar[Can] = Can(attention_mask=False, packed=False, cross=False, decode=False)

    def __init__(
        self,
        max_seq_len: Size = INHERIT,
        dim_head: Size = INHERIT,
        causal: bool = inherit(False),
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.causal = causal
        self.dropout = dropout
        self.rel_pos_emb = nn.Parameter(torch.empty(2 * max_seq_len - 1, dim_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Vectors of distances from the standard normal distribution, as the paper has them."""
        nn.init.normal_(self.rel_pos_emb)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        """Apply the lambdas of the context to the queries."""
        length, groups = q.shape[2], q.shape[1] // k.shape[1]
        if length > self.max_seq_len or k.shape[2] != length:
            raise ShapeError(
                f"a lambda layer takes as many queries as keys, at most {self.max_seq_len}: there are {length} queries "
                f"and {k.shape[2]} keys"
            )
        own = None if sides.k_valid is None else front(sides.k_valid)
        if own is not None:
            q, k, v = own.gather(q), own.gather(k), own.gather(v)
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = content_lambda(q, k, v, None if own is None else own.real, self.causal) + self._by_distance(q) @ v
        if own is not None:
            y = own.restore(y)
        return F.dropout(y, self.dropout) if self.training and self.dropout else y

    def _by_distance(self, q: Tensor) -> Tensor:
        """q_n . E_{m-n} for all pairs: [B, H, L, L]."""
        length, most = q.shape[2], self.max_seq_len
        steps = torch.arange(length, device=q.device)
        if self.causal:  # distances from -(L - 1) to 0
            scores = q @ self.rel_pos_emb[most - length : most].T
            index = steps - steps[:, None] + length - 1
            return scores.gather(-1, index.clamp(max=length - 1).expand_as(scores)).tril()
        scores = q @ self.rel_pos_emb[most - length : most + length - 1].T
        index = steps - steps[:, None] + length - 1
        return scores.gather(-1, index.expand(*q.shape[:2], -1, -1))
