"""Changes of shape that torch leaves untyped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["root", "unflatten"]


def unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """One dimension as several; a size of -1 is what is left."""
    y: Tensor = x.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return y


def root(number: int) -> int:
    """The largest integer whose square is at most a size, also where the size is open in a graph that is compiled."""
    if not torch.compiler.is_compiling():
        return math.isqrt(number)
    found = 0  # by comparisons, which a compiler takes as conditions of its graph
    while (found + 1) ** 2 <= number:
        found += 1
    return found
