"""Weights made from other weights: with signs, with a sink, mixed over heads."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.ops.weightings import Normaliser, ScaledWeights, SignedWeights, SinkWeights, TalkingWeights
from variform.parts.kinds import Sides, Weighting

Size = Annotated[int, Field(gt=0)]


class AroundWeighting(Weighting):
    """The base of weightings that change those of `weights`; None is softmax."""

    weights: Weighting | None

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What those inside can do."""
        inner = described(args.get("weights"))
        return inner.part.abilities(inner.args) if isinstance(inner, Spec) else Can()

    @classmethod
    def queries_mixed(cls, args: Facts) -> bool:
        """Whether those inside do."""
        inner = described(args.get("weights"))
        return isinstance(inner, Spec) and issubclass(inner.part, Weighting) and inner.part.queries_mixed(inner.args)

    def inner(self, sides: Sides) -> Normaliser | None:
        """The normaliser inside."""
        return None if self.weights is None else self.weights(sides)


@register("signed")
class SignedWeighting(AroundWeighting):
    """Negative weights (cog attention, https://openreview.net/forum?id=ezRrwwbxd0): P = sign(S) * weights(|S|).

    Args:
        weights: of the sizes of scores; softmax by default. Weights over which heads are mixed stand around this.
    """

    def __init__(self, weights: Weighting | None = None) -> None:
        super().__init__()
        self.weights = weights

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """What changes weights after their dropout would see signs already."""
        inner = described(facts["weights"])
        while isinstance(inner, Spec):
            if issubclass(inner.part, _Mixing):
                hint = f"put the signs inside: {inner.name}(weights=signed())"
                return [Problem("weights", "signs come before heads are mixed", inner.name, hint)]
            inner = described(inner.args.get("weights"))
        return []

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser."""
        return SignedWeights(self.inner(sides))


@register("sink")
class SinkWeighting(AroundWeighting):
    """A learned score a head that takes weight and gives no value (gpt-oss, arXiv:2508.10925).

    P_ij = exp(S_ij) / (exp(s_h) + sum_t exp(S_it)), so that a head can attend to nothing.

    Args:
        heads: number of query heads.
        weights: of the scores with the sink's in front; softmax by default.
    """

    def __init__(self, heads: Size = INHERIT, weights: Weighting | None = None) -> None:
        super().__init__()
        self.weights = weights
        self.sink = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A score of zero."""
        nn.init.zeros_(self.sink)

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser with the current scores."""
        return SinkWeights(self.sink, self.inner(sides))


class _Mixing(AroundWeighting):
    def __init__(self, heads: int, weights: Weighting | None) -> None:
        super().__init__()
        self.weights = weights
        self.weight = nn.Parameter(torch.empty(heads, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every head keeps its own."""
        nn.init.eye_(self.weight)


@register("talking_heads")
class TalkingHeadWeighting(_Mixing):
    """Heads mix their weights (talking heads, Shazeer et al. 2020, arXiv:2003.02436): P_h <- sum_g W_hg P_g.

    Args:
        heads: number of query heads.
        weights: which are mixed; softmax by default.
    """

    def __init__(self, heads: Size = INHERIT, weights: Weighting | None = None) -> None:
        super().__init__(heads, weights)

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser with the current weights."""
        return TalkingWeights(self.weight, self.inner(sides))


@register("scaled_by_heads")
class HeadScaledWeighting(_Mixing):
    """Weights scaled by what heads mix of the products of queries and keys: P_h <- P_h * sum_g W_hg (q k^T)_g.

    Args:
        heads: number of query heads.
        weights: which are scaled; softmax by default.
    """

    def __init__(self, heads: Size = INHERIT, weights: Weighting | None = None) -> None:
        super().__init__(heads, weights)

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser with the current weights."""
        return ScaledWeights(self.weight, self.inner(sides))
