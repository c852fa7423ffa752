"""Attentions around another attention: what they change of its queries, keys, values, scores or results.

Each takes the inner one in the slot `attention`, so that they nest in any order and serve every attention alike.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from variform.core.part import Can, Facts
from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.parts.kinds import Attention, State


class AroundAttention(Attention):
    """The base of attentions that call another one, `self.attention`: abilities and state are the inner one's.

    A subclass that cannot do all that its inner attention can narrows `abilities`; one that keeps state of its own
    wraps `init_state` and hands the inner state on with `dataclasses.replace(sides, state=...)`.
    """

    attention: Attention
    each_alone: ClassVar[bool] = False
    """Whether each key and value is treated on its own, so that it takes those which were joined outside."""

    @classmethod
    def inner(cls, args: Facts) -> Spec | None:
        """The attention in the slot, described."""
        found = described(args.get("attention"))
        return found if isinstance(found, Spec) and issubclass(found.part, Attention) else None

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What this part and the inner attention can both do."""
        inner = cls.inner(args)
        return cls.can if inner is None else cls.can & inner.part.abilities(inner.args)

    @classmethod
    def scores_taken(cls, args: Facts) -> bool:
        """Whether the inner attention takes scores."""
        inner = cls.inner(args)
        return inner is not None and issubclass(inner.part, Attention) and inner.part.scores_taken(inner.args)

    @classmethod
    def positions_taken(cls, args: Facts) -> bool:
        """Whether the inner attention goes by positions."""
        inner = cls.inner(args)
        return inner is not None and issubclass(inner.part, Attention) and inner.part.positions_taken(inner.args)

    @classmethod
    def queries_mixed(cls, args: Facts) -> bool:
        """Whether the inner attention mixes queries."""
        inner = cls.inner(args)
        return inner is not None and issubclass(inner.part, Attention) and inner.part.queries_mixed(inner.args)

    @classmethod
    def value_size(cls, args: Facts) -> int | None:
        """The inner attention's."""
        inner = cls.inner(args)
        return inner.part.value_size(inner.args) if inner is not None and issubclass(inner.part, Attention) else None

    @classmethod
    def value_times(cls, args: Facts) -> int:
        """The inner attention's."""
        inner = cls.inner(args)
        return inner.part.value_times(inner.args) if inner is not None and issubclass(inner.part, Attention) else 1

    @property
    def takes_joined(self) -> bool:  # type: ignore[override]
        """Where each key is treated on its own, whether the inner attention does."""
        return self.each_alone and self.attention.takes_joined

    @property
    def able(self) -> Can:
        """What this part and the inner attention can both do."""
        return self.can & self.attention.able

    @property
    def able_across(self) -> Can:
        """What this part and the inner attention can both do over another sequence."""
        return self.can & self.attention.able_across

    @classmethod
    def own_abilities(cls, args: Facts) -> Can | None:
        """The inner attention's."""
        inner = cls.inner(args)
        return inner.part.own_abilities(inner.args) if inner is not None and issubclass(inner.part, Attention) else None

    @property
    def takes_scores(self) -> bool:  # type: ignore[override]
        """Whether the inner attention takes scores."""
        return self.attention.takes_scores

    @property
    def takes_beside(self) -> bool:  # type: ignore[override]
        """Whether the inner attention takes further keys and values."""
        return self.attention.takes_beside

    @property
    def takes_positions(self) -> bool:  # type: ignore[override]
        """Whether the inner attention goes by positions."""
        return self.attention.takes_positions

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether the inner attention keeps state."""
        return self.attention.stateful

    @property
    def causal(self) -> bool:
        """Whether the inner attention is causal."""
        return bool(getattr(self.attention, "causal", False))

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """The inner attention's own."""
        return self.attention.init_state(batch, max_len, like, heads, dim_key, dim_value)

    def own_state(self, batch: int, max_len: int) -> State:
        """The inner attention's."""
        return self.attention.own_state(batch, max_len)


def wide_inside(inner: Spec | None) -> list[Problem]:
    """What is wrong with an inner attention that gives more features than a value has."""
    if inner is None or not issubclass(inner.part, Attention) or inner.part.value_times(inner.args) == 1:
        return []
    message = f"{inner.name!r} gives more features than a value has: put it around the others"
    return [Problem("attention", message, inner.name)]
