"""Keys and values that decoding keeps: a preallocated buffer, and a ring of the newest ones.

The plan of a call (`cache`, made once a forward by the model) says where new tokens go: `start` (all rows alike: a
slice) or `slots` [B, L] (row by row; padding goes to the last, unread slot), and `length`, how many slots are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from variform.parts.kinds import Sides, State


def append(state: State, k: Tensor, v: Tensor, cache: Mapping[str, Any]) -> tuple[Tensor, Tensor, State]:
    """Put new keys and values into the buffers; returns what is to be attended and the new state.

    With autograd off the buffers are updated in place (the old state is void); otherwise they are copied, so that
    gradients flow through the state.

    Shapes:
        k, v: [B, Hk, L, D] -> [B, Hk, length, D]
    """
    start, length = cache["start"], cache["length"]
    keys, values = state["k"], state["v"]
    if start is not None and not torch.is_grad_enabled():
        end = start + k.shape[2]
        keys[:, :, start:end], values[:, :, start:end] = k, v
    else:
        keys, values = write(keys, k, cache), write(values, v, cache)
        state = {"k": keys, "v": values}
    return keys[:, :, :length], values[:, :, :length], state


def buffer_state(batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
    """Buffers for keys and values; the last slot takes what must not be kept."""
    return {
        "k": like.new_zeros(batch, heads, max_len + 1, dim_key),
        "v": like.new_zeros(batch, heads, max_len + 1, dim_value),
    }


def join_cache(
    k: Tensor, v: Tensor, sides: Sides, state: State, cache: Mapping[str, Any], positioned: bool
) -> tuple[Tensor, Tensor, Sides, State]:
    """Join new keys and values to the buffers, and say of both together what a call needs to know.

    Args:
        positioned: whether something that is asked for depends on positions.

    Shapes:
        k, v: [B, Hk, L, D] -> [B, Hk, length, D]
    """
    k, v, state = append(state, k, v, cache)
    # Without positions both sides count from 0, or nothing that is asked for depends on them.
    positioned = not cache["fresh"] and positioned
    joined = Sides(
        q_positions=sides.q_positions if positioned else None,
        k_positions=cache["positions"] if positioned else None,
        q_segments=sides.q_segments,
        q_valid=sides.q_valid,
        k_segments=cache["segments"],
        k_valid=cache["valid"],
        mask=sides.mask,
        scores=sides.scores,
        x=sides.x,
        streams=sides.streams,
        published=sides.published,
        beside=sides.beside,
    )
    return k, v, joined, state


def write(buffer: Tensor, x: Tensor, cache: Mapping[str, Any]) -> Tensor:
    """Put new rows into a buffer: in place with autograd off, else into a copy.

    Shapes:
        buffer: [B, H, slots, D], x: [B, H, L, D] -> [B, H, slots, D]
    """
    start = cache["start"]
    x = x if x.dtype is buffer.dtype else x.to(buffer.dtype)
    if start is not None:
        if torch.is_grad_enabled():
            return buffer.slice_scatter(x, 2, start, start + x.shape[2])
        buffer[:, :, start : start + x.shape[2]] = x
        return buffer
    slots: Tensor = cache["slots"]
    rows = torch.arange(slots.shape[0], device=slots.device).unsqueeze(1)
    by_slot = buffer.transpose(1, 2)
    if torch.is_grad_enabled():
        return by_slot.index_put((rows, slots), x.transpose(1, 2)).transpose(1, 2)
    by_slot.index_put_((rows, slots), x.transpose(1, 2))
    return buffer


def ring_state(batch: int, size: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
    """An empty ring of `size` tokens, oldest first; entries that are not valid stand in front."""
    return {
        "k": like.new_zeros(batch, heads, size, dim_key),
        "v": like.new_zeros(batch, heads, size, dim_value),
        "positions": torch.zeros(batch, size, dtype=torch.long, device=like.device),
        "segments": torch.zeros(batch, size, dtype=torch.long, device=like.device),
        "valid": torch.zeros(batch, size, dtype=torch.bool, device=like.device),
    }


def ring_append(state: State, k: Tensor, v: Tensor, sides: Sides) -> tuple[Tensor, Tensor, Sides, State]:
    """Join the ring and a chunk: attend to both, then keep the newest valid entries.

    Shapes:
        k, v: [B, Hk, L, D] -> [B, Hk, size + L, D]
    """
    batch, length = k.shape[0], k.shape[2]
    keys = torch.cat((state["k"], k.to(state["k"].dtype)), 2)
    values = torch.cat((state["v"], v.to(state["v"].dtype)), 2)
    positions = torch.cat((state["positions"], _rows(sides.q_positions, batch, length, k)), 1)
    new_segments = torch.zeros_like(positions[:, -length:]) if sides.q_segments is None else sides.q_segments
    segments = torch.cat((state["segments"], new_segments), 1)
    new_valid = torch.ones_like(new_segments, dtype=torch.bool) if sides.q_valid is None else sides.q_valid
    valid = torch.cat((state["valid"], new_valid), 1)
    packed = sides.q_segments is not None
    sides = replace(
        sides,
        q_positions=positions[:, -length:],
        k_positions=positions,
        k_valid=valid,
        q_segments=new_segments if packed else None,
        k_segments=segments if packed else None,
    )
    whole = {"k": keys, "v": values, "positions": positions, "segments": segments, "valid": valid}
    return keys, values, sides, _newest(whole, state["k"].shape[2], every=sides.q_valid is None)


def _newest(whole: State, size: int, every: bool) -> State:
    """The last `size` valid entries of each row, in order."""
    if every:
        total = whole["valid"].shape[1]
        return {name: x.narrow(2 if x.dim() == 4 else 1, total - size, size) for name, x in whole.items()}
    order = whole["valid"].to(torch.uint8).argsort(dim=1, stable=True)[:, whole["valid"].shape[1] - size :]
    wide = order[:, None, :, None]
    return {
        name: x.gather(2, wide.expand(-1, x.shape[1], -1, x.shape[3])) if x.dim() == 4 else x.gather(1, order)
        for name, x in whole.items()
    }


def _rows(positions: Tensor | None, batch: int, length: int, like: Tensor) -> Tensor:
    if positions is None:
        positions = torch.arange(length, device=like.device)
    return positions.expand(batch, length)
