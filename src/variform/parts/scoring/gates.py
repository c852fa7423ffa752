"""Keys that fade by gates of the tokens after them."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can
from variform.core.registry import register
from variform.errors import ShapeError
from variform.ops.learned_scores import ForgetBias, ForgetRows, ForgetSeen, at_or_before
from variform.ops.scores import ScoreMod
from variform.parts.kinds import Scoring, Sides

Size = Annotated[int, Field(gt=0)]


@register("forget")
class ForgetGates(Scoring):
    """Forgetting attention (Lin et al. 2025, arXiv:2503.02130): keys fade by gates that depend on the tokens between.

    S_ij <- S_ij + post * sum over j < t <= i of log sigmoid(W x_t + b)_h. Without `causal`, keys after the query fade
    by gates of their own, sum over i < t <= j. Padding, and what a mask hides from a query, moves it by nothing.

    Args:
        dim: features of a token.
        heads: number of query heads.
        bias: initial b; gates start at sigmoid(bias).
        post: factor on the logarithms.
        causal: only the past.
    """

    can: ClassVar[Can] = Can(cross=False)
    positioned: ClassVar[bool] = True

    def __init__(
        self,
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        bias: float = 5.0,
        post: float = 1.0,
        causal: bool = inherit(False),
    ) -> None:
        super().__init__()
        self.heads = heads
        self.start = bias
        self.post = post
        self.causal = causal
        self.weight = nn.Parameter(torch.empty(heads * self._gates, dim))
        self.bias = nn.Parameter(torch.empty(heads * self._gates))
        self.reset_parameters()

    @property
    def _gates(self) -> int:
        return 1 if self.causal else 2

    @property
    def kept_size(self) -> int:
        """A token's gates."""
        return self.heads * self._gates

    def reset_parameters(self) -> None:
        """As torch draws a linear map, with gates almost open."""
        init_like_linear(self.weight, self.bias)
        nn.init.constant_(self.bias, self.start)

    def keep(self, sides: Sides) -> Tensor:
        """The logarithms of the tokens' gates."""
        gates = functional.logsigmoid(functional.linear(_tokens(sides), self.weight, self.bias)) * self.post
        # Gates of the past, then those of the future, of all heads each.
        return gates.view(*gates.shape[:2], self._gates, self.heads).permute(0, 3, 1, 2)

    def forward(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod:
        """The bias of a call."""
        assert kept is not None
        gates = kept if kept.dtype == torch.float64 else kept.float()  # sums of many small numbers
        if sides.k_valid is not None:
            gates = gates.masked_fill(~sides.k_valid[:, None, :, None], 0.0)
        if sides.mask is not None:
            return ForgetSeen(gates[..., 0], None if self.causal else gates[..., 1])
        sums = gates.cumsum(2)
        at_queries = _at_queries(gates, sums, q.shape[2], sides)
        pairs = [(at_queries[..., n], sums[..., n]) for n in range(self._gates)]
        return ForgetBias(*pairs[0], None if self.causal else pairs[1])


@register("forget_rows")
class ForgetRowGates(Scoring):
    """Forgetting attention whose gates depend on query and key: every query lets the past fade in its own way.

    S_ij <- S_ij + post * sum over j <= t < i of log sigmoid(g_i . h_t / sqrt(d)), with g = W_g x, h = W_h x per head.

    Args:
        dim: features of a token.
        heads: number of query heads.
        features: d, of g and h.
        post: factor on the logarithms.
    """

    can: ClassVar[Can] = Can(cross=False)
    positioned: ClassVar[bool] = True

    def __init__(self, dim: Size = INHERIT, heads: Size = INHERIT, features: Size = 8, post: float = 1.0) -> None:
        super().__init__()
        self.heads = heads
        self.features = features
        self.post = post
        self.queries = nn.Parameter(torch.empty(heads * features, dim))
        self.keys = nn.Parameter(torch.empty(heads * features, dim))
        self.reset_parameters()

    @property
    def kept_size(self) -> int:
        """A token's h."""
        return self.heads * self.features

    def reset_parameters(self) -> None:
        """As torch draws linear maps."""
        init_like_linear(self.queries, None)
        init_like_linear(self.keys, None)

    def keep(self, sides: Sides) -> Tensor:
        """The tokens' h."""
        return self._heads(_tokens(sides), self.keys)

    def forward(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod:
        """The bias of a call."""
        assert kept is not None
        return ForgetRows(self._heads(_tokens(sides), self.queries), kept, self.post)

    def _heads(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight).view(*x.shape[:2], self.heads, self.features).transpose(1, 2)


def init_like_linear(weight: Tensor, bias: Tensor | None) -> None:
    """torch's initial weights of a linear map."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = weight.shape[1] ** -0.5
        nn.init.uniform_(bias, -bound, bound)


def _tokens(sides: Sides) -> Tensor:
    if sides.x is None:
        raise ShapeError("forget gates read the mixer's input, which this caller of the attention lacks")
    return sides.x


def _at_queries(gates: Tensor, sums: Tensor, length: int, sides: Sides) -> Tensor:
    """Sums at the places of the queries, [B, H, Lq, gates]."""
    if sides.q_positions is None or sides.q_positions is sides.k_positions:
        return sums[:, :, :length]
    assert sides.k_positions is not None
    past = at_or_before(sides.q_positions, sides.k_positions)
    return past.to(gates.dtype) @ gates
