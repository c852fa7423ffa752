"""Masks and biases of pairs of tokens, where other tokens were put among them of which they say nothing."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from variform.errors import ShapeError
from variform.ops.masks.base import And, Mask
from variform.ops.masks.tensors import Dense, KeyPadding, Padding

__all__ = ["widened_bias", "widened_mask"]


def widened_mask(mask: Mask, order: Tensor, length: int, positions: Tensor | None = None) -> Mask:
    """The mask over N places, L tokens and others among them: what was added sees all, and is seen by all.

    Keys that are hidden from all tokens (`KeyPadding`, `Padding`) are hidden from what was added too.
    Parts that know the added tokens already, [N, N], stay as they are, and so do keys of [L, N].

    Shapes:
        order: [N], the token of each place, or -1 at added ones; positions: [L] or [B, L]

    Args:
        mask: over the tokens, or over all places.
        order: which place is whose.
        length: L.
        positions: of the tokens; by default they are counted.

    Raises:
        ShapeError: sizes that are none of these.
    """
    if isinstance(mask, And):
        return functools.reduce(Mask.__and__, (widened_mask(part, order, length, positions) for part in mask.parts))
    whole = len(order)
    rows, columns = _sizes(mask, length, whole)
    if rows == whole:
        return mask
    count = torch.arange(max(length, whole), device=order.device)
    q_pos = count[:length] if positions is None else positions
    pairs = mask.dense(q_pos, q_pos if columns == length else count[:whole])
    if isinstance(mask, (KeyPadding, Padding)):
        keep = pairs[:, 0, 0].index_select(-1, order.clamp(min=0))
        return KeyPadding(keep.masked_fill(order < 0, True))
    pairs = pairs.expand(*pairs.shape[:-2], length, columns)
    return Dense(_spread(pairs, order, columns == length, True))


def widened_bias(bias: Tensor, order: Tensor, length: int) -> Tensor:
    """The bias over N places, L tokens and others among them: nothing is added to scores of added tokens.

    Shapes:
        bias: [.., L, L], or [.., L, N] or [.., N, N] -> [.., N, N]; order: [N], the token of each place, or -1

    Raises:
        ShapeError: sizes that are none of these.
    """
    whole, sizes = len(order), tuple(bias.shape[-2:])
    if sizes == (whole, whole):
        return bias
    if sizes not in ((length, length), (length, whole)):
        raise ShapeError(f"a bias of {list(sizes)} pairs fits neither {length} tokens nor {whole} with what was added")
    return _spread(bias, order, sizes[1] == length, 0.0)


def _sizes(mask: Mask, length: int, whole: int) -> tuple[int, int]:
    """How many queries and keys a mask is over: the tokens, all places, or tokens that look at all places."""
    first: ShapeError | None = None
    for rows, columns in ((length, length), (whole, whole), (length, whole)):
        try:
            mask.check(None, None, rows, columns)
        except ShapeError as error:
            first = first or error
        else:
            return rows, columns
    raise ShapeError(f"{first}, nor {whole} with what was added") from first


def _spread(pairs: Tensor, order: Tensor, both: bool, other: bool | float) -> Tensor:
    """Rows (and columns, where both are of tokens) by `order`, and another value at those that were added."""
    token, added = order.clamp(min=0), order < 0
    wide = pairs.index_select(-2, token)
    if both:
        wide = wide.index_select(-1, token)
    return wide.masked_fill(added[:, None] | added if both else added[:, None], other)
