"""Scores that heads have from one another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from variform.errors import ShapeError
from variform.ops.learned_scores.changing import Changing
from variform.ops.scores import ScoreMod


@dataclass(frozen=True, eq=False)
class TalkingScores(Changing):
    """Heads add one another's scores (talking heads): S_h += sum_g weight[h, g] S_g.

    Shapes: weight `[H, H]`. Paper: https://arxiv.org/abs/2003.02436
    """

    weight: Tensor

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return scores + mixed_heads(scores, self.weight)

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return self

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        return 2 * batch * heads * heads * q_len * k_len

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        square("TalkingScores(weight)", self.weight, heads)


def mixed_heads(scores: Tensor, weight: Tensor) -> Tensor:
    """Sums over heads: out_h = sum_g weight[h, g] scores_g.

    Shapes: scores `[B, H, Lq, Lk]`, weight `[H, H]` -> as scores.
    """
    return (weight.to(scores.dtype) @ scores.flatten(2)).view_as(scores)


def square(name: str, weight: Tensor, heads: int) -> None:
    """Raise `ShapeError` where a matrix of heads to heads is none."""
    if tuple(weight.shape) != (heads, heads):
        raise ShapeError(f"{name}: [{heads}, {heads}] expected, got {list(weight.shape)}")
