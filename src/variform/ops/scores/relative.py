"""Biases that depend on positions alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from variform.errors import ConfigError, ShapeError
from variform.ops.scores.base import Additive, ScoreFunction, by_row, position_at


@dataclass(frozen=True, eq=False)
class Alibi(Additive):
    """Attention with linear biases: S -= slope_h * |q - k|.

    Shapes: slopes `[H]`. Paper: https://arxiv.org/abs/2108.12409
    """

    slopes: Tensor

    @property
    def is_relative(self) -> bool:
        return True

    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return self.slopes[:, None, None] * -relative_positions(q_pos, k_pos).abs()

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score - self.slopes[h] * (position_at(q_pos, b, q_idx) - position_at(k_pos, b, kv_idx)).abs()

        return mod

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        if self.slopes.shape != (heads,):
            raise ShapeError(f"Alibi(slopes): [{heads}] expected, one a head; got {list(self.slopes.shape)}")


@dataclass(frozen=True, eq=False)
class BucketBias(Additive):
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
        bucket = t5_bucket(relative_positions(q_pos, k_pos), self.bidirectional, self.table.shape[0], self.max_distance)
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
class GridBias(Additive):
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
        q, k = by_row(q_pos), by_row(k_pos)
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


def relative_positions(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """k - q as `[B|1, 1, Lq, Lk]`."""
    q, k = by_row(q_pos), by_row(k_pos)
    return k[:, None, None, :] - q[:, None, :, None]
