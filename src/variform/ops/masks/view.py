"""The coordinates at which a mask is evaluated: a grid, a gathered tile, or the single point FlexAttention asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from variform.errors import ShapeError

__all__ = ["View", "grid_view", "point_view"]


@dataclass(frozen=True, slots=True)
class View:
    """Integer tensors that broadcast against each other to the shape of the answer.

    Shapes:
        q_index, k_index: row and column in the call; None on a grid, where `rows` and `columns` count them on demand.
        q_pos, k_pos: positions, `[Lq, 1]`, `[1, Lk]` or `[B, 1, Lq, 1]`, `[B, 1, 1, Lk]` on a grid.
        q_seg, k_seg: segment ids, shaped like the positions, or None.
        b, h: batch row and head of each point; None on a grid, where they are axes 0 and 1 of the answer.
    """

    q_pos: Tensor
    k_pos: Tensor
    q_seg: Tensor | None = None
    k_seg: Tensor | None = None
    q_index: Tensor | None = None
    k_index: Tensor | None = None
    b: Tensor | None = None
    h: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """Row of the call, `[Lq, 1]` on a grid."""
        if self.q_index is not None:
            return self.q_index
        return torch.arange(self.q_pos.shape[-2], device=self.q_pos.device)[:, None]

    @property
    def columns(self) -> Tensor:
        """Column of the call, `[1, Lk]` on a grid."""
        if self.k_index is not None:
            return self.k_index
        return torch.arange(self.k_pos.shape[-1], device=self.k_pos.device)[None, :]

    def lift(self, tensor: Tensor) -> Tensor:
        """A mask's tensor as it can meet the call's: a stand-in where the call runs on fake tensors."""
        if isinstance(self.q_pos, FakeTensor) and not isinstance(tensor, FakeTensor):
            return self.q_pos.fake_mode.from_tensor(tensor)
        return tensor

    def row(self, size: int) -> Tensor | int:
        """Index into an axis of `size` batch rows (size 1 is shared by all rows)."""
        if size == 1:
            return 0
        if self.b is not None:
            return self.b
        return torch.arange(size, device=self.q_pos.device).view(size, 1, 1, 1)

    def head(self, size: int) -> Tensor | int:
        """Index into an axis of `size` heads (size 1 is shared by all heads)."""
        if size == 1:
            return 0
        if self.h is not None:
            return self.h
        return torch.arange(size, device=self.q_pos.device).view(1, size, 1, 1)


def _spread(values: Tensor, name: str, keys: bool) -> Tensor:
    """`[L]` or `[B, L]` -> broadcastable to `[B, H, Lq, Lk]` along the query or the key axis."""
    if values.dim() == 1:
        return values[None, :] if keys else values[:, None]
    if values.dim() == 2:
        return values[:, None, None, :] if keys else values[:, None, :, None]
    raise ShapeError(f"{name} must be [L] or [B, L], got {tuple(values.shape)}")


def grid_view(q_pos: Tensor, k_pos: Tensor, q_seg: Tensor | None = None, k_seg: Tensor | None = None) -> View:
    """Every query against every key.

    Shapes: positions and segments `[L]` or `[B, L]`.
    """
    if (q_seg is None) != (k_seg is None):
        raise ShapeError("q_seg and k_seg must be given together")
    return View(
        q_pos=_spread(q_pos, "q_pos", keys=False),
        k_pos=_spread(k_pos, "k_pos", keys=True),
        q_seg=None if q_seg is None else _spread(q_seg, "q_seg", keys=False),
        k_seg=None if k_seg is None else _spread(k_seg, "k_seg", keys=True),
    )


def point_view(
    b: Tensor,
    h: Tensor,
    q_index: Tensor,
    k_index: Tensor,
    q_pos: Tensor | None = None,
    k_pos: Tensor | None = None,
    q_seg: Tensor | None = None,
    k_seg: Tensor | None = None,
) -> View:
    """Given points: scalars inside FlexAttention, broadcastable tensors for gathered tiles.

    Shapes: positions and segments `[L]`, `[B, L]` or None (positions: the index itself).
    """

    def at(values: Tensor, index: Tensor) -> Tensor:
        return values[index] if values.dim() == 1 else values[b if values.shape[0] > 1 else 0, index]

    return View(
        q_index=q_index,
        k_index=k_index,
        q_pos=q_index if q_pos is None else at(q_pos, q_index),
        k_pos=k_index if k_pos is None else at(k_pos, k_index),
        q_seg=None if q_seg is None else at(q_seg, q_index),
        k_seg=None if k_seg is None else at(k_seg, k_index),
        b=b,
        h=h,
    )
