"""Doubly stochastic matrices: rows and columns that each sum to one."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["doubly_stochastic"]


def doubly_stochastic(scores: Tensor, rounds: int) -> Tensor:
    """Sinkhorn and Knopp's iteration: exp(scores) with rows and columns divided by their sums in turn.

    Columns are divided last, so that they sum to one whatever the number of rounds; rows come close to it.

    Args:
        scores: logarithms of a positive matrix.
        rounds: how often both are divided.

    Shapes:
        scores: [..., S, S] -> [..., S, S], in float32 at least
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    matrix = wide.softmax(-2)
    for _ in range(rounds):
        matrix = matrix / matrix.sum(-1, keepdim=True)
        matrix = matrix / matrix.sum(-2, keepdim=True)
    return matrix
