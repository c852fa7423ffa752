"""Rows whose real tokens stand side by side, so that recurrences and convolutions meet no padding between them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Aligned", "align", "restore", "starts_of"]


class Aligned(NamedTuple):
    """How the tokens of each row were moved.

    Shapes: order, real `[B, L]`, counts `[B]`: where each place's token was, whether it is real, how many are.
    """

    order: Tensor
    real: Tensor
    counts: Tensor


def align(x: Tensor, valid: Tensor, side: str = "left") -> tuple[Tensor, Aligned]:
    """Move the real tokens of each row to one side, in order, with zeros beside them, whatever was there.

    Args:
        x: features.
        valid: True = a real token.
        side: "left", or "right".

    Shapes: x `[B, L, D]`, valid `[B, L]` -> `[B, L, D]`
    """
    last = valid if side == "right" else ~valid
    order = last.to(torch.uint8).argsort(dim=1, stable=True)
    real = valid.gather(1, order)
    moved = x.gather(1, order[..., None].expand_as(x)).masked_fill(~real[..., None], 0)
    return moved, Aligned(order, real, valid.sum(1))


def restore(y: Tensor, aligned: Aligned) -> Tensor:
    """Every token back to its place, `[B, L, D]`."""
    back = aligned.order.argsort(dim=1)
    return y.gather(1, back[..., None].expand_as(y))


def starts_of(segments: Tensor, real: Tensor | None, previous: Tensor | None = None) -> Tensor:
    """Where a new document begins: its id is not that of the token before. Padding begins none.

    Args:
        segments: ids of tokens, real ones side by side.
        real: True = a real token; None for all.
        previous: the id before the first token.

    Shapes: segments, real `[B, L]`, previous `[B]` -> bool `[B, L]`
    """
    first = segments[:, :1] if previous is None else previous[:, None].to(segments.dtype)
    starts = segments != torch.cat((first, segments[:, :-1]), 1)
    if real is None:
        return starts
    before = torch.cat((torch.ones_like(real[:, :1]), real[:, :-1]), 1)
    return starts & real & before if previous is None else starts & real
