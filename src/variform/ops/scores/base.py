"""What a score modifier is, and the two bases of most."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

ScoreFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class ScoreMod(ABC):
    """One modifier of scaled scores; a `Call` applies its modifiers in order.

    Positions are integers `[L]` or `[B, L]`. Subclasses hold tensors with their gradients.
    """

    @property
    def is_additive(self) -> bool:
        """Whether the modifier only adds a bias that does not depend on the scores."""
        return True

    @property
    def is_relative(self) -> bool:
        """Whether moving all positions by as much changes nothing; on a grid, along its axes."""
        return False

    @abstractmethod
    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The modified scores; the reference, in the scores' own dtype.

        Shapes: scores `[B, H, Lq, Lk]` -> the same.
        """

    @abstractmethod
    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The bias, broadcastable to `[B, H, Lq, Lk]` (4-D), or None when the modifier is not additive."""

    def aligned(self, q_len: int, k_len: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The bias between positions 0..q_len-1 and 0..k_len-1, for modifiers that are quicker when they know this."""
        return self.additive(torch.arange(q_len, device=device), torch.arange(k_len, device=device), dtype)

    @abstractmethod
    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction | None:
        """FlexAttention's `score_mod(score, b, h, q_idx, kv_idx)`, or None when it cannot be expressed.

        Without positions the index is the position.
        """

    @property
    def is_pointwise(self) -> bool:
        """Whether there is a `score_mod`: the change of a single pair can be told."""
        return self.score_mod() is not None

    @property
    def is_late(self) -> bool:
        """Whether it comes after the masks: what it does depends on which pairs may attend (`apply_seen`)."""
        return False

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The modified scores, where the modifier goes by which pairs may attend; by default it does not.

        Shapes: scores `[B, H, Lq, Lk]`, seen bool, broadcastable to them; None where every pair may -> as scores.
        """
        return self.apply(scores, q_pos, k_pos)

    def cut(self, rows: slice, columns: slice) -> ScoreMod | None:
        """The modifier for some queries and keys of the call; None where a query's scores depend on other queries.

        Positions are cut by the caller. `columns` holds all keys that `rows` may attend to.
        """
        return None

    def behind(self, count: int, q_pos: Tensor, k_pos: Tensor) -> ScoreMod:
        """The modifier for a call with `count` keys of no position in front: biases do not move them.

        Positions are those of the call without these keys, whose own are lost.
        """
        return Behind(self, count, q_pos, k_pos) if self.is_additive else self

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        """Floating-point operations of its products, a multiply-add counting 2."""
        return 0

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        """Raise `ShapeError` when a tensor of this modifier does not fit a call of these sizes exactly."""
        return None


class Additive(ScoreMod):
    """A modifier that adds a bias; by default a function of positions alone, the same for any part of a call."""

    @property
    def is_pointwise(self) -> bool:
        return True

    @abstractmethod
    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The bias in the parameters' dtype, `[B|1, H|1, Lq, Lk]`."""

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return scores + self._bias(q_pos, k_pos).to(scores.dtype)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor:
        return self._bias(q_pos, k_pos).to(dtype)

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return self


@dataclass(frozen=True, eq=False)
class Behind(ScoreMod):
    """A modifier of all keys but the first `count`, which stand in front of a sequence and have no positions.

    Args:
        modifier: of the others.
        count: keys in front.
        q_pos, k_pos: positions of the queries and of the other keys.
        in_order: they are 0, 1, ... on both sides, which some modifiers are quicker to know.
    """

    modifier: ScoreMod
    count: int
    q_pos: Tensor
    k_pos: Tensor
    in_order: bool = False

    @property
    def is_additive(self) -> bool:
        return self.modifier.is_additive

    @property
    def is_pointwise(self) -> bool:
        return self.modifier.is_pointwise

    @property
    def is_late(self) -> bool:
        return self.modifier.is_late

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return self.apply_seen(scores, None, q_pos, k_pos)

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        front, rest = scores[..., : self.count], scores[..., self.count :]
        seen = None if seen is None else seen[..., self.count :]
        return torch.cat((front, self.modifier.apply_seen(rest, seen, self.q_pos, self.k_pos)), -1)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor | None:
        if self.in_order:
            sizes = self.q_pos.shape[-1], self.k_pos.shape[-1]
            bias = self.modifier.aligned(*sizes, dtype, self.q_pos.device)
        else:
            bias = self.modifier.additive(self.q_pos, self.k_pos, dtype)
        if bias is None:
            return None
        shape = (*bias.shape[:-2], self.q_pos.shape[-1], self.k_pos.shape[-1])
        return functional.pad(bias.expand(shape), (self.count, 0))

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction | None:
        inner, count = self.modifier.score_mod(self.q_pos, self.k_pos), self.count
        if inner is None:
            return None

        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            moved = inner(score, b, h, q_idx, (kv_idx - count).clamp(min=0))
            return torch.where(kv_idx < count, score, moved)

        return mod

    def cut(self, rows: slice, columns: slice) -> ScoreMod | None:
        rest = slice(max(0, columns.start - self.count), columns.stop - self.count)
        count = max(0, self.count - columns.start)
        inner = self.modifier.cut(rows, rest)
        return None if inner is None else Behind(inner, count, self.q_pos[..., rows], self.k_pos[..., rest])

    def behind(self, count: int, q_pos: Tensor, k_pos: Tensor) -> ScoreMod:
        return replace(self, count=self.count + count)

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        return self.modifier.flops(batch, heads, q_len, k_len - self.count)

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        self.modifier.check(batch, heads, q_len, k_len - self.count)


def position_at(positions: Tensor | None, b: Tensor, index: Tensor) -> Tensor:
    """The position at an index of row `b`; the index itself where no positions are given."""
    if positions is None:
        return index
    return positions[index] if positions.dim() == 1 else positions[b if positions.shape[0] > 1 else 0, index]


def by_row(positions: Tensor) -> Tensor:
    """Positions `[L]` or `[B, L]` as `[B|1, L]`."""
    return positions[None] if positions.dim() == 1 else positions
