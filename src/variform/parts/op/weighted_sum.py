"""The weighted sum of attention as a step of a program."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from variform.core.dims import Shape, shape_text
from variform.core.inherit import inherit
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.attention.kv_cache import write
from variform.parts.flows import MASKED, Flow
from variform.parts.kinds import Norm, Op, State, Streams
from variform.parts.op.chunks import hidden_keys, lowered, sum_flow, without
from variform.parts.op.common import FEATURES, HEADS, SCORES, STEPWISE, divided, ranked, split
from variform.parts.op.pending import PendingScores

_ENOUGH = {"softmax": MASKED, "relu": MASKED, "tanh": -1e30, "none": None}
"""How low a score must be for the key to weigh nothing; None where only a weight of 0 does it."""


@register("weighted_sum")
class WeightedSum(Op):
    """y = f(S) v: attention from scores that were computed before.

    With `causal`, scores of later keys do not count. Under tanh a score that a mask has pushed down (at or below
    -1e30, half the lowest number of a narrower type) weighs 0, not -1.

    Shapes:
        v: [B, Lk, H * Dv] -> [B, Lq, H * Dv], heads split and merged here; or [B, H, Lk, Dv] -> [B, H, Lq, Dv]
        scores: [B, H, Lq, Lk]; the weights f(S), of this shape, are a second output if asked for

    Args:
        function: f: "softmax" over the keys, "relu" or "tanh"; "none" for scores that are weights already, those of
            an earlier sum (LazyFormer, Ying et al. 2021, arXiv:2102.12702).
        norm: on each head's values.
        weights: give f(S) back as well.
        causal: position i sees positions <= i only.
    """

    arity: ClassVar[int] = 2
    stateful: ClassVar[bool] = True
    can: ClassVar[Can] = STEPWISE
    accepts: ClassVar[tuple[frozenset[str], ...]] = (FEATURES | HEADS, SCORES)

    def __init__(
        self,
        function: Literal["softmax", "relu", "tanh", "none"] = "softmax",
        norm: Norm | None = None,
        weights: bool = False,
        causal: bool = inherit(False),
    ) -> None:
        super().__init__()
        self.function = function
        self.norm = norm
        self.weights = weights
        self.causal = causal

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm works on one head's values."""
        shapes = facts.get("read_shapes", ())
        if len(shapes) == 2 and len(shapes[0]) == 3 and len(shapes[1]) == 4:
            features, heads = shapes[0][-1], shapes[1][1]
            if isinstance(features, int) and isinstance(heads, int) and features % heads == 0:
                return {"dim": features // heads}
        return {}

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Values and scores must agree on batch, heads and keys."""
        v, scores = inputs[0], ranked("a weighted sum", inputs[1], "scores of [B, H, Lq, Lk]")
        batch, heads, queries, keys = scores
        if len(v) not in (3, 4):
            raise ShapeError(f"values are [B, Lk, dim] or [B, H, Lk, D], not {shape_text(v)}")
        flat = len(v) == 3
        if flat:
            divided(v[-1], heads)
        elif v[1] != heads:
            raise ShapeError(f"the values have {v[1]} heads, the scores {heads}")
        if v[0] != batch:
            raise ShapeError(f"values and scores need equal batch sizes, and {v[0]} is not {batch}")
        if v[-2] != keys:
            raise ShapeError(f"there are {v[-2]} values, and scores for {keys} keys")
        if args["causal"] and queries != keys:
            raise ShapeError(f"causal needs as many queries as keys, and {queries} is not {keys}")
        out: Shape = (batch, queries, v[-1]) if flat else (batch, heads, queries, v[-1])
        return (out, scores) if args["weights"] else (out,)

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """What the values are, features or heads, and scores."""
        return (contents[0], "scores") if args["weights"] else (contents[0],)

    def forward(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        """Weigh the values, by scores that are there or pending."""
        v, scores = inputs
        if isinstance(scores, PendingScores):
            y = scores.weigh(self._heads(v, scores), self.causal)
            return y.transpose(1, 2).flatten(-2) if v.dim() == 3 else y
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, 0.0 if self.function == "none" else -torch.inf)
        out = self._sum(self._weights(scores), self._heads(v, scores), v.dim() == 3)
        return out if self.weights else out[0]

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """Later keys must be hidden, by this op or by the scores."""
        return sum_flow(self, inputs, outputs, self.causal, _ENOUGH[self.function], zeros=self.function != "softmax")

    def init_state(self, batch: int, max_len: int, like: Tensor, inputs: tuple[Flow, ...]) -> State | None:
        """A buffer for the heads' values; none for those of another sequence."""
        v, scores = inputs
        if not scores.pairs:
            return None
        (dim,), (heads,) = v.sizes(-1), scores.sizes(1)
        return {"v": like.new_zeros(batch, heads, max_len + 1, dim // heads if len(v.shape) == 3 else dim)}

    def step(self, inputs: tuple[Tensor, ...], state: State, streams: Streams) -> tuple[tuple[Tensor, ...], State]:
        """Weigh every value so far."""
        v, scores = inputs
        cache = streams["cache"]
        values = write(state["v"], self._heads(v, scores), cache)
        hidden = hidden_keys(streams, scores.shape[2], self.causal)
        weights = without(self._weights(lowered(scores, hidden)), hidden)
        if self.function == "softmax":  # rows that see nothing, as in the fused whole
            weights = weights.masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)
        return self._sum(weights, values[:, :, : cache["length"]], v.dim() == 3), {"v": values}

    def _heads(self, v: Tensor, scores: Tensor | PendingScores) -> Tensor:
        if v.dim() == 3:
            v = split(v, scores.shape[1])
        return v if self.norm is None else self.norm(v)

    def _sum(self, weights: Tensor, v: Tensor, flat: bool) -> tuple[Tensor, ...]:
        y = weights.to(v.dtype) @ v  # an offset of higher precision than the model makes its scores so
        if flat:
            y = y.transpose(1, 2).flatten(-2)
        return (y, weights) if self.weights else (y,)

    def _weights(self, scores: Tensor) -> Tensor:
        if self.function == "softmax":
            return scores.softmax(-1)
        if self.function == "relu":
            return scores.relu()
        if self.function == "none":
            return scores
        lowest = torch.finfo(scores.dtype).min
        return scores.tanh().masked_fill(scores <= max(-1e30, lowest / 2), 0.0)
