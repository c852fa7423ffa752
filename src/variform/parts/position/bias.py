"""Positions as a bias on attention scores: ALiBi, the T5 relative bias, and Swin's over the points of a window."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.ops.scores import Alibi, BucketBias, GridBias, ScoreMod, alibi_slopes
from variform.parts.kinds import Bias

Size = Annotated[int, Field(gt=0)]


@register("alibi")
class AlibiBias(Bias):
    """Attention with linear biases (Press et al. 2021, arXiv:2108.12409).

    S_ij <- S_ij - m_h |i - j|, with slopes m_h = 2^(-8 h / H) (the paper's rule where H is no power of two).

    Args:
        heads: number of query heads.
        learned: train the slopes.
        slopes: m_h for each head, where others than the paper's are wanted; 0 leaves a head without a bias.
    """

    slopes: Tensor

    def __init__(self, heads: Size = INHERIT, learned: bool = False, slopes: tuple[float, ...] | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.initial = slopes
        empty = torch.empty(heads)
        if learned:
            self.slopes = nn.Parameter(empty)
        else:
            self.register_buffer("slopes", empty, persistent=False)
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """One slope a head."""
        slopes, heads = facts["slopes"], facts["heads"]
        if slopes is not None and len(slopes) != heads:
            return [Problem("slopes", f"one slope for each of the {heads} heads is needed, not {len(slopes)}", slopes)]
        return []

    def reset_parameters(self) -> None:
        """The slopes given, or the paper's."""
        with torch.no_grad():
            self.slopes.copy_(alibi_slopes(self.heads) if self.initial is None else torch.tensor(self.initial))

    def forward(self) -> ScoreMod:
        """The modifier with the current slopes."""
        return Alibi(self.slopes)


@register("t5")
class T5Bias(Bias):
    """Learned bias per head and bucket of relative distance (Raffel et al. 2019, arXiv:1910.10683).

    S_ij <- S_ij + scale * table[bucket(j - i), h]; half the buckets are exact distances, the rest logarithmic up to
    `max_distance`.

    Args:
        heads: number of query heads.
        buckets: rows of the table; even when bidirectional.
        max_distance: distances beyond it share the last bucket.
        causal: spend all buckets on the past.
        std: standard deviation of the initial table.
        scale: factor on the table.
    """

    def __init__(
        self,
        heads: Size = INHERIT,
        buckets: Annotated[int, Field(ge=4)] = 32,
        max_distance: Size = 128,
        causal: bool = inherit(False),
        std: Annotated[float, Field(ge=0)] = 0.02,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.bidirectional = not causal
        self.std = std
        self.scale = scale
        self.table = nn.Parameter(torch.empty(buckets, heads))
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Bidirectional buckets are split in two halves; the logarithmic part needs room."""
        buckets, causal = facts["buckets"], facts["causal"]
        if not causal and buckets % 2:
            return [Problem("buckets", "both directions share the buckets: an even number is needed", buckets)]
        exact = buckets // 2 if causal else buckets // 4
        if facts["max_distance"] <= exact:
            message = f"must exceed the {exact} distances that have buckets of their own"
            return [Problem("max_distance", message, facts["max_distance"])]
        return []

    def reset_parameters(self) -> None:
        """Small normal biases."""
        nn.init.normal_(self.table, 0.0, self.std)

    def forward(self) -> ScoreMod:
        """The modifier with the current table."""
        table = self.table if self.scale == 1.0 else self.table * self.scale
        return BucketBias(table, self.bidirectional, self.max_distance)


@register("window")
class WindowBias(Bias):
    """Learned bias per head and offset between two points of a window (Swin, Liu et al. 2021, arXiv:2103.14030).

    S_ij <- S_ij + table[(dy + h - 1) (2 w - 1) + dx + w - 1, head] for a window of h x w, where query i lies dy rows
    below and dx columns right of key j. Offsets that leave the window count as the farthest within it.

    Args:
        columns: of the grid whose points the positions count, row by row.
        window: rows and columns of a window.
        heads: number of query heads.
        std: standard deviation of the initial table.
    """

    def __init__(
        self,
        columns: Size,
        window: tuple[Size, Size] = (7, 7),
        heads: Size = INHERIT,
        std: Annotated[float, Field(ge=0)] = 0.02,
    ) -> None:
        super().__init__()
        self.columns = columns
        self.window = window
        self.std = std
        rows, width = window
        self.table = nn.Parameter(torch.empty((2 * rows - 1) * (2 * width - 1), heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal biases."""
        nn.init.normal_(self.table, 0.0, self.std)

    def forward(self) -> ScoreMod:
        """The modifier with the current table."""
        return GridBias(self.table, self.columns, self.window)
