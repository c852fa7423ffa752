"""Keys and values that every query attends to, before those of the sequence."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from variform.errors import ShapeError
from variform.ops.attention.call import Call
from variform.ops.masks import After, Dense, Mask
from variform.ops.scores import ScoreMod
from variform.ops.scores.base import Behind

__all__ = ["with_memory"]


def with_memory(call: Call, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Call:
    """The call with `k` and `v` in front of its own keys and values: no mask hides them, no bias moves them.

    Masks that depend on data are built whole for it, because columns no longer stand for positions. A modifier that is
    no bias (a soft cap) holds for these keys too, and so does what makes weights of scores.

    Args:
        call: the call.
        k, v: of key heads, or of query heads where these are more.
        valid: which of them there are.

    Shapes:
        k: [Hk, M, D], v: [Hk, M, Dv], or the same of each row, [B, Hk, M, D] and [B, Hk, M, Dv]; valid: [B, M] bool
    """
    count, batch, heads = k.shape[-2], call.q.shape[0], k.shape[-3]
    if heads != call.k.shape[1]:
        if heads != call.q.shape[1]:
            told = f"{call.k.shape[1]} key heads, or {call.q.shape[1]} as queries have, are needed"
            raise ShapeError(f"further keys have {heads} heads: {told}")
        own_k, own_v = call.expanded()
        call = replace(call, k=own_k, v=own_v)
    sizes, own = (k.shape[-1], v.shape[-1]), (call.k.shape[-1], call.v.shape[-1])
    if sizes != own:
        raise ShapeError(
            f"further keys and values have {sizes[0]} and {sizes[1]} features a head, not {own[0]} and {own[1]}"
        )
    if valid is not None and valid.shape[-1] != count:
        raise ShapeError(f"valid says of {valid.shape[-1]} further keys, and there are {count}")
    bare = replace(call, scores=())  # some modifiers are of all keys, those in front included
    return replace(
        call,
        k=torch.cat((k.to(call.k.dtype).expand(batch, -1, -1, -1), call.k), 2),
        v=torch.cat((v.to(call.v.dtype).expand(batch, -1, -1, -1), call.v), 2),
        structure=None,
        mask=_mask(bare, count) if valid is None else _mask_beside(bare, valid),
        q_positions=None,
        k_positions=None,
        q_segments=None,
        k_segments=None,
        k_valid=None,
        scores=tuple(_behind(modifier, count, call) for modifier in call.scores),
    )


def _behind(modifier: ScoreMod, count: int, call: Call) -> ScoreMod:
    made = modifier.behind(count, *call.positions())
    if isinstance(modifier, Behind) or not isinstance(made, Behind) or not call.aligned:
        return made
    return replace(made, in_order=True)


def _mask_beside(call: Call, valid: Tensor) -> Mask:
    """The call's masks behind keys of which some are not there."""
    batch, _, queries, _ = call.q.shape
    own, size = call.full_mask(), (queries, call.k.shape[2])
    own = valid.new_ones(1, 1, *size) if own is None else own.expand(*own.shape[:-2], *size)
    own = own if own.dim() == 4 else own[None, None]
    before = valid[:, None, None].expand(batch, own.shape[1], queries, valid.shape[1])
    return Dense(torch.cat((before, own.expand(batch, -1, -1, -1)), -1))


def _mask(call: Call, count: int) -> Mask | None:
    """The call's masks behind `count` keys that are always attended; a symbol where positions and data play no part."""
    symbol = call.symbolic_mask()
    if (
        call.aligned
        and call.k_valid is None
        and call.q_segments is None
        and not (symbol is not None and symbol.has_tensors)
    ):
        return None if symbol is None else After(symbol, count)
    mask = call.full_mask()
    if mask is None:
        return None
    mask = mask.expand(*mask.shape[:-2], call.q.shape[2], call.k.shape[2])
    return Dense(functional.pad(mask, (count, 0), value=True))
