"""Scores given from outside, and scores given out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variform.errors import ShapeError
from variform.ops.learned_scores.changing import Changing
from variform.ops.scores import ScoreFunction, ScoreMod


@dataclass(frozen=True, eq=False)
class AddedScores(ScoreMod):
    """Scores given for every key of the call, those in front of the sequence included: S += tensor.

    Shapes: tensor `[B|1, H|1, Lq, Lk]`.
    """

    tensor: Tensor

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return scores + self.tensor.to(scores.dtype)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor:
        return self.tensor.to(dtype)

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        rows, heads = self.tensor.shape[:2]

        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score + self.tensor[b if rows > 1 else 0, h if heads > 1 else 0, q_idx, kv_idx]

        return mod

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return AddedScores(self.tensor[..., rows, columns])

    def behind(self, count: int, q_pos: Tensor, k_pos: Tensor) -> ScoreMod:
        return self

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        shape = tuple(self.tensor.shape)
        if len(shape) != 4 or shape[2:] != (q_len, k_len) or shape[0] not in (1, batch) or shape[1] not in (1, heads):
            raise ShapeError(f"AddedScores {list(shape)} does not fit [{batch}, {heads}, {q_len}, {k_len}] exactly")


@dataclass(frozen=True, eq=False)
class ObservedScores(Changing):
    """Changes nothing; puts the scores that all others have made into `into`, before masks hide any."""

    into: list[Tensor]

    @property
    def is_late(self) -> bool:
        return True

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        self.into.append(scores)
        return scores
