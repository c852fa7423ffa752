"""Score modifiers: what is done to scaled attention scores before the mask and the softmax."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from variform.errors import ConfigError, ShapeError

__all__ = [
    "Alibi",
    "Behind",
    "BucketBias",
    "DenseBias",
    "GridBias",
    "ScoreFunction",
    "ScoreMod",
    "SoftCap",
    "alibi_slopes",
    "position_at",
    "t5_bucket",
]

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


@dataclass(frozen=True, eq=False)
class Behind(ScoreMod):
    """A modifier of all keys but the first `count`, which stand in front of a sequence and have no positions.

    Args:
        modifier: of the others.
        count: keys in front.
        q_pos, k_pos: positions of the queries and of the other keys.
    """

    modifier: ScoreMod
    count: int
    q_pos: Tensor
    k_pos: Tensor

    @property
    def is_additive(self) -> bool:
        return self.modifier.is_additive

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
        return Behind(self.modifier, self.count + count, self.q_pos, self.k_pos)

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        return self.modifier.flops(batch, heads, q_len, k_len - self.count)

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        self.modifier.check(batch, heads, q_len, k_len - self.count)


class _Additive(ScoreMod):
    @abstractmethod
    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The bias in the parameters' dtype, `[B|1, H|1, Lq, Lk]`."""

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return scores + self._bias(q_pos, k_pos).to(scores.dtype)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor:
        return self._bias(q_pos, k_pos).to(dtype)

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return self  # a function of positions alone


@dataclass(frozen=True, eq=False)
class Alibi(_Additive):
    """Attention with linear biases: S -= slope_h * |q - k|.

    Shapes: slopes `[H]`. Paper: https://arxiv.org/abs/2108.12409
    """

    slopes: Tensor

    @property
    def is_relative(self) -> bool:
        return True

    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return self.slopes[:, None, None] * -_relative(q_pos, k_pos).abs()

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score - self.slopes[h] * (position_at(q_pos, b, q_idx) - position_at(k_pos, b, kv_idx)).abs()

        return mod

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        if self.slopes.shape != (heads,):
            raise ShapeError(f"Alibi(slopes): [{heads}] expected, one a head; got {list(self.slopes.shape)}")


@dataclass(frozen=True, eq=False)
class BucketBias(_Additive):
    """Learned bias per bucket of relative distance (T5): S += table[bucket(k - q), h].

    Args:
        table: `[buckets, H]`.
        bidirectional: whether keys after the query get buckets of their own (half of them).
        max_distance: distances from here on share the last bucket.

    Paper: https://arxiv.org/abs/1910.10683
    """

    table: Tensor
    bidirectional: bool
    max_distance: int = 128

    @property
    def is_relative(self) -> bool:
        return True

    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        bucket = t5_bucket(_relative(q_pos, k_pos), self.bidirectional, self.table.shape[0], self.max_distance)
        # Look-up on [B|1, Lq, Lk], then heads to their axis: one gather instead of one a head.
        return self.table[bucket[:, 0]].permute(0, 3, 1, 2)

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            relative = position_at(k_pos, b, kv_idx) - position_at(q_pos, b, q_idx)
            return (
                score + self.table[t5_bucket(relative, self.bidirectional, self.table.shape[0], self.max_distance), h]
            )

        return mod

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        if self.table.dim() != 2 or self.table.shape[1] != heads:
            raise ShapeError(f"BucketBias(table): [buckets, {heads}] expected, got {list(self.table.shape)}")
        if self.table.shape[0] < (4 if self.bidirectional else 2):
            raise ShapeError(f"BucketBias(table): {self.table.shape[0]} buckets are too few (2, bidirectional 4)")


@dataclass(frozen=True, eq=False)
class GridBias(_Additive):
    """Learned bias per offset of two points of a grid (Swin): S += table[(dy + h - 1) (2 w - 1) + dx + w - 1, head].

    dy and dx are rows and columns from the key to the query, held within the window of h x w.

    Args:
        table: `[(2 h - 1) (2 w - 1), H]`.
        columns: of the grid whose points the positions count, row by row.
        window: (h, w).

    Paper: https://arxiv.org/abs/2103.14030
    """

    table: Tensor
    columns: int
    window: tuple[int, int]

    @property
    def is_relative(self) -> bool:
        return True

    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        q = q_pos[None] if q_pos.dim() == 1 else q_pos
        k = k_pos[None] if k_pos.dim() == 1 else k_pos
        return self.table[self._row(q[:, :, None], k[:, None, :])].permute(0, 3, 1, 2)

    def _row(self, q: Tensor, k: Tensor) -> Tensor:
        rows, width = self.window
        down = (q // self.columns - k // self.columns).clamp(1 - rows, rows - 1)
        right = (q % self.columns - k % self.columns).clamp(1 - width, width - 1)
        return (down + rows - 1) * (2 * width - 1) + right + width - 1

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score + self.table[self._row(position_at(q_pos, b, q_idx), position_at(k_pos, b, kv_idx)), h]

        return mod

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        rows, width = self.window
        wanted = ((2 * rows - 1) * (2 * width - 1), heads)
        if tuple(self.table.shape) != wanted:
            raise ShapeError(f"GridBias(table): {list(wanted)} expected, got {list(self.table.shape)}")


@dataclass(frozen=True, eq=False)
class DenseBias(_Additive):
    """A given bias by row and column of the call: S += tensor.

    -inf entries are not attended; a row of nothing else gives zeros.

    Shapes: tensor `[Lq, Lk]` or `[B|1, H|1, Lq, Lk]`; 3-D with `per` = "batch" or "head".
    """

    tensor: Tensor
    per: Literal["batch", "head"] | None = None

    def __post_init__(self) -> None:
        if not self.tensor.is_floating_point():
            raise ShapeError(
                f"DenseBias(tensor): floats expected, got {self.tensor.dtype}; a bool mask is Dense(tensor)"
            )
        if self.tensor.dim() not in (2, 3, 4) or (self.tensor.dim() == 3) != (self.per in ("batch", "head")):
            raise ShapeError(
                f"DenseBias(tensor): [Lq, Lk], [B, H, Lq, Lk], or 3-D with per='batch' or per='head' expected; "
                f"got {list(self.tensor.shape)} with per={self.per!r}"
            )

    def _full(self) -> Tensor:
        if self.tensor.dim() == 2:
            return self.tensor[None, None]
        return (
            self.tensor
            if self.tensor.dim() == 4
            else self.tensor[:, None]
            if self.per == "batch"
            else self.tensor[None]
        )

    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return self._full()

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return DenseBias(self._full()[..., rows, columns])

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        full = self._full()
        rows, heads = full.shape[:2]

        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score + full[b if rows > 1 else 0, h if heads > 1 else 0, q_idx, kv_idx]

        return mod

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        rows, per_head, rest = self._full().shape[0], self._full().shape[1], tuple(self._full().shape[2:])
        if rest != (q_len, k_len) or rows not in (1, batch) or per_head not in (1, heads):
            raise ShapeError(
                f"DenseBias {list(self.tensor.shape)} does not fit [{batch}, {heads}, {q_len}, {k_len}] exactly"
            )


@dataclass(frozen=True, eq=False)
class SoftCap(ScoreMod):
    """Bound scores smoothly: S = value * tanh(S / value).

    Paper: Gemma 2, https://arxiv.org/abs/2408.00118
    """

    value: float

    def __post_init__(self) -> None:
        if not self.value > 0:
            raise ConfigError(f"SoftCap(value={self.value}): must be > 0")

    @property
    def is_additive(self) -> bool:
        return False

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return torch.tanh(scores / self.value) * self.value

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> None:
        return None

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return self

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return torch.tanh(score / self.value) * self.value

        return mod


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of the ALiBi paper, float32 `[heads]`: 2^(-8 i / n) for a power of two n = heads.

    Other head counts take the slopes of the power of two below, then every other one of the power of two above, as
    the authors' code does. Paper: https://arxiv.org/abs/2108.12409
    """
    if heads < 1:
        raise ConfigError(f"alibi_slopes(heads={heads}): at least one head")
    below = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / below) for i in range(below)]
    slopes += [2.0 ** (-8.0 * (2 * i + 1) / (2 * below)) for i in range(heads - below)]
    return torch.tensor(slopes, dtype=torch.float32)


def t5_bucket(relative: Tensor, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Bucket of a relative position `k - q` (T5): exact for small distances, logarithmic up to `max_distance`.

    Shapes: relative integers, any shape -> int64 in [0, buckets), the same shape.
    Paper: https://arxiv.org/abs/1910.10683
    """
    offset = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        offset = (relative > 0).to(relative.dtype) * buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).to(relative.dtype)).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def _relative(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """k - q as `[B|1, 1, Lq, Lk]`."""
    q = q_pos[None] if q_pos.dim() == 1 else q_pos
    k = k_pos[None] if k_pos.dim() == 1 else k_pos
    return k[:, None, None, :] - q[:, None, :, None]


def position_at(positions: Tensor | None, b: Tensor, index: Tensor) -> Tensor:
    """The position at an index of row `b`; the index itself where no positions are given."""
    if positions is None:
        return index
    return positions[index] if positions.dim() == 1 else positions[b if positions.shape[0] > 1 else 0, index]
