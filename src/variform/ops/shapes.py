"""Changes of shape that torch leaves untyped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["unflatten"]


def unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """One dimension as several; a size of -1 is what is left."""
    y: Tensor = x.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return y
