"""Keys and values that every query attends to, before those of the sequence."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from variform.ops.attention.call import Call
from variform.ops.masks import After, Dense, Mask

__all__ = ["with_memory"]


def with_memory(call: Call, k: Tensor, v: Tensor) -> Call:
    """The call with `k` and `v` in front of its own keys and values: no mask hides them, no bias moves them.

    Masks that depend on data are built whole for it, because columns no longer stand for positions. A modifier that is
    no bias (a soft cap) holds for these keys too, and so does what makes weights of scores.

    Shapes:
        k: [Hk, M, D], v: [Hk, M, Dv], or the same of each row, [B, Hk, M, D] and [B, Hk, M, Dv]
    """
    count, batch = k.shape[-2], call.q.shape[0]
    return replace(
        call,
        k=torch.cat((k.to(call.k.dtype).expand(batch, -1, -1, -1), call.k), 2),
        v=torch.cat((v.to(call.v.dtype).expand(batch, -1, -1, -1), call.v), 2),
        structure=None,
        mask=_mask(replace(call, scores=()), count),  # some modifiers are of all keys, those in front included
        q_positions=None,
        k_positions=None,
        q_segments=None,
        k_segments=None,
        k_valid=None,
        scores=tuple(modifier.behind(count, *call.positions()) for modifier in call.scores),
    )


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
