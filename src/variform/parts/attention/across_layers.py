"""Attentions that go on with what an earlier layer's attention worked out: its values, its scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import Facts, use
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.ops.blend import blend
from variform.ops.learned_scores import AddedScores, ObservedScores
from variform.parts.attention.around import AroundAttention
from variform.parts.kinds import Attention, Sides, State
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("value_residual")
class ValueResidual(AroundAttention):
    """Values that are mixed with those of the stack's first attention (ResFormer, Zhou et al. 2024, arXiv:2410.17897).

    v <- v_1 + m (v - v_1), with m = 1/2, or m = sigmoid(W x + b), one factor a token and key head. The first such
    attention of a stack keeps its values as they are and hands them on; `begin_history` with the stream's name has to
    stand before it. A decode state keeps mixed values.

    Shapes:
        q, k, v: as the inner attention's; the stream: a tuple of one [B, Hk, L, Dv], empty at first

    Args:
        attention: the attention that sees the mixed values.
        learned: make m of the token; leave it out in the first layer, where nothing is mixed.
        stream: the name under which the first values are handed on.
        dim: features of a token.
        kv_heads: key and value heads.

    Raises:
        ShapeError: the first values have other heads or features.
    """

    def __init__(
        self,
        attention: Attention = use("softmax"),
        learned: bool = False,
        stream: str = "first_values",
        dim: Size = INHERIT,
        kv_heads: Size = INHERIT,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.stream = stream
        self.mix = Linear(dim, kv_heads) if learned else None

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """The first values."""
        return (args.get("stream", "first_values"),)

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The first values."""
        return frozenset({args.get("stream", "first_values")})

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Mix the values and attend."""
        first: tuple[Tensor, ...] = () if sides.streams is None else sides.streams.get(self.stream, ())
        if not first:
            sides.published[self.stream] = (v,)
        elif first[0].shape != v.shape:
            message = f"values {list(v.shape)} cannot be mixed with the first layer's {list(first[0].shape)}"
            raise ShapeError(f"{message}: all attentions need as many key heads of as many features")
        elif self.mix is None:
            v = (first[0] + v) / 2
        else:
            assert sides.x is not None
            v = blend(first[0], v, torch.sigmoid(self.mix(sides.x)).transpose(1, 2).unsqueeze(-1))
        return self.attention(q, k, v, sides)


@register("score_residual")
class ScoreResidual(AroundAttention):
    """Scores to which those of the attention before are added (RealFormer, He et al. 2020, arXiv:2012.11747).

    S_l <- S_l + S_{l-1}, before any bias and other change of scores; what the next layer gets is what they all make of
    it, before masks (where the softmax of signed weights goes by |S|, that of |S|). The first such attention of a stack
    has nothing to add; `begin_history` with the stream's name has to stand before it. Scores are held whole, in
    O(Lq * Lk); decoding holds those of the new queries alone.

    Shapes:
        q, k, v: as the inner attention's; the stream: a tuple of one [B, H, Lq, Lk], empty at first

    Args:
        attention: the attention whose scores they are.
        stream: the name under which scores are handed on.

    Raises:
        ShapeError: the attention before had other heads, or other keys.
    """

    def __init__(self, attention: Attention = use("softmax"), stream: str = "scores") -> None:
        super().__init__()
        self.attention = attention
        self.stream = stream

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """There are scores."""
        inner = cls.inner(facts)
        if inner is None or cls.scores_taken(facts):
            return []
        return [Problem("attention", f"{inner.name!r} has no scores that could be handed on")]

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """The scores."""
        return (args.get("stream", "scores"),)

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The scores before."""
        return frozenset({args.get("stream", "scores")})

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend with the scores before, and hand the sum on."""
        before: tuple[Tensor, ...] = () if sides.streams is None else sides.streams.get(self.stream, ())
        observed: list[Tensor] = []
        scores = (*map(AddedScores, before), *sides.scores, ObservedScores(observed))
        out = self.attention(q, k, v, replace(sides, scores=scores))
        sides.published[self.stream] = (observed[0],)
        return out
