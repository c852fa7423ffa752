"""Attention within a distance, and over two sequences that end together."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.errors import Problem
from variform.ops.masks import Dense, Mask, Window
from variform.parts.attention.around import AroundAttention
from variform.parts.kinds import Attention, Sides, State

Places = Annotated[int, Field(ge=0)]


@register("limited")
class LimitedAttention(AroundAttention):
    """Attention to keys that are at most so far away: -ahead <= p_q - p_k <= back (windows that need not be symmetric,
    as those of Longformer, Beltagy et al. 2020, arXiv:2004.05150, are).

    It stands around attentions that take a mask of pairs; `local` keeps no more keys than its window while decoding.
    Over another sequence p are the positions of both, counted from their beginnings unless they are told otherwise.

    Shapes:
        q, k, v: as the inner attention's

    Args:
        back: how far before a query; None for any distance.
        ahead: how far after it; None for any distance.
        attention: what attends to the keys within the distance.
    """

    each_alone: ClassVar[bool] = True

    def __init__(self, back: Places | None, ahead: Places | None = None, attention: Attention = use("softmax")) -> None:
        super().__init__()
        self.attention = attention
        self.structure = Window(back, ahead)

    @classmethod
    def positions_taken(cls, args: Facts) -> bool:
        """It goes by positions, whatever the inner attention does."""
        return True

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """There is a limit, and the attention inside takes it."""
        if facts["back"] is None and facts["ahead"] is None:
            return [Problem("back", "there is no limit: give back, ahead or both")]
        inner = cls.inner(facts)
        if inner is None or not issubclass(inner.part, Attention) or inner.part.abilities(inner.args).attention_mask:
            return []
        if inner.part.queries_mixed(inner.args):  # pairs are hidden there, but queries that are hidden are still seen
            return []
        return [Problem("attention", f"{inner.name!r} does not take a mask of pairs, which a limit is")]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend within the limits."""
        mask: Mask = self.structure if sides.mask is None else self.structure & sides.mask
        sides = replace(sides, mask=mask)
        if sides.k_positions is None and sides.k_valid is not None and sides.cache is None:
            sides.k_positions = sides.k_valid.long().cumsum(-1) - 1  # padding has no place of its own
            if sides.q_positions is None:
                sides.q_positions = torch.arange(q.shape[2], device=q.device)
        return self.attention(q, k, v, sides)

    @property
    def takes_positions(self) -> bool:  # type: ignore[override]
        """It goes by positions, whatever the inner attention does."""
        return True


@register("ends_together")
class EndsTogether(AroundAttention):
    """Attention whose two sequences end together: for the inner one the last query stands where the last key does, and
    the tokens before them are counted from there, padding left out.

    For cross attention from the newest tokens of a context, say, with limits of distance inside. Where a query stands
    depends on how many follow it, so it is neither causal nor decoded.

    Shapes:
        q, k, v: as the inner attention's

    Args:
        attention: what goes by the positions.
    """

    can: ClassVar[Can] = Can(causal=False, packed=False, decode=False)
    reads: ClassVar[frozenset[str]] = frozenset({"valid"})

    def __init__(self, attention: Attention = use("limited", back=128)) -> None:
        super().__init__()
        self.attention = attention

    @classmethod
    def positions_taken(cls, args: Facts) -> bool:
        """The positions that are told are not those it goes by."""
        return False

    @classmethod
    def queries_mixed(cls, args: Facts) -> bool:
        """Other queries say where one stands."""
        return True

    @property
    def takes_positions(self) -> bool:  # type: ignore[override]
        """The positions that are told are not those it goes by."""
        return False

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend by positions from the ends."""
        valid = sides.q_valid
        if valid is None and sides.streams is not None:
            valid = sides.streams.get("valid")
        mask = sides.mask
        if mask is not None:  # it is of the positions as they were
            dense = mask.dense(*(_steps(x) if told is None else told for x, told in _told(q, k, sides)))
            mask = Dense(dense.expand(*dense.shape[:-2], q.shape[2], k.shape[2]))
        last = max(q.shape[2], k.shape[2]) - 1
        queries, keys = last - _to_come(q, valid), last - _to_come(k, sides.k_valid)
        return self.attention(q, k, v, replace(sides, mask=mask, q_positions=queries, k_positions=keys))


def _told(q: Tensor, k: Tensor, sides: Sides) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    return (q, sides.q_positions), (k, sides.k_positions)


def _steps(x: Tensor) -> Tensor:
    return torch.arange(x.shape[2], device=x.device)


def _to_come(x: Tensor, valid: Tensor | None) -> Tensor:
    """How many tokens follow each, padding not counted.

    Shapes:
        x: [B, H, L, D], valid: [B, L] -> [L], or [B, L] where there is padding
    """
    if valid is None:
        return x.shape[2] - 1 - _steps(x)
    counts = valid.long()
    return counts.sum(-1, keepdim=True) - counts.cumsum(-1)
