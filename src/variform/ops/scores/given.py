"""Biases given by row and column, and bounds of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variform.errors import ConfigError, ShapeError
from variform.ops.scores.base import Additive, ScoreFunction, ScoreMod


@dataclass(frozen=True, eq=False)
class DenseBias(Additive):
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
