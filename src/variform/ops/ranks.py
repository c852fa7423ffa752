"""Padded rows by rank: real tokens moved to the front of their row, in order, and results moved back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Front", "front"]


@dataclass(frozen=True, slots=True, eq=False)
class Front:
    """Where the real tokens of each row stand.

    What works on places (segments, projections over the sequence, distances) then works on ranks among real tokens,
    so that padding on either side changes nothing.

    Shapes:
        valid: bool `[B, L]`; order: `[B, L]`, the place of each rank; rank: `[B, L]`, the rank of each place (some
        number in range at padding); count: `[B]`, how many tokens are real
    """

    valid: Tensor
    order: Tensor
    rank: Tensor
    count: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """`[B, H, L, D]` by place to the same by rank; zeros behind the real tokens, whatever stood at padding."""
        clean = x.masked_fill(~self.valid[:, None, :, None], 0)
        return clean.gather(2, self.order[:, None, :, None].expand_as(clean))

    def restore(self, x: Tensor) -> Tensor:
        """`[B, H, L, D]` by rank to the same by place; zeros at padding."""
        moved = x.gather(2, self.rank[:, None, :, None].expand_as(x))
        return moved.masked_fill(~self.valid[:, None, :, None], 0)

    @property
    def real(self) -> Tensor:
        """bool `[B, L]`, by rank: whether there is a token of this rank."""
        return torch.arange(self.valid.shape[1], device=self.valid.device) < self.count[:, None]


def front(valid: Tensor) -> Front:
    """The ranks of the tokens that `valid` (bool `[B, L]`) marks as real."""
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    rank = (valid.long().cumsum(1) - 1).clamp(min=0)
    return Front(valid, order, rank, valid.sum(1))
