"""The decode state of causal Nystrom attention: tokens and segments of them, each kept where it is computed once.

The buffers hold level after level: the tokens by rank, then segments of 2, 4, 8, ... tokens, and one last
entry that nobody reads, for what must not be kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from variform.ops.causal_nystrom import Pyramid, Scheme, merge
from variform.ops.ranks import Front
from variform.ops.shapes import unflatten
from variform.parts.attention.kv_cache import write
from variform.parts.kinds import State

NAMES = ("q", "k", "v", "bias")


def empty(batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int, cut: Scheme) -> State:
    """Buffers for `max_len` tokens and their segments."""
    starts = _starts(max_len, cut)
    wide = torch.float32 if like.dtype.itemsize < 4 else like.dtype

    def buffer(size: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, heads, starts[-1] + 1, size, dtype=dtype, device=like.device)

    sizes = {"q": dim_key, "k": dim_key, "v": dim_value}
    return {**{name: buffer(size, like.dtype) for name, size in sizes.items()}, "bias": buffer(1, wide)}


def extend_all(state: State, q: Tensor, k: Tensor, v: Tensor, start: int, cut: Scheme) -> tuple[Pyramid, State]:
    """Put new tokens at the ranks from `start` on, in all rows, and make the segments that they complete.

    Shapes:
        q, k: `[B, H, L, D]`, v: `[B, H, L, Dv]`
    """
    starts = _starts(_capacity(state, cut), cut)
    end = start + k.shape[2]
    buffers = _put(state, (q, k, v, torch.zeros_like(k[..., :1])), start, None)
    for level in range(1, len(starts) - 1):
        first, last = start >> level, end >> level
        if first == last:  # nor does a longer segment end here
            break
        below = starts[level - 1]
        parts = (buffers[name][:, :, below + 2 * first : below + 2 * last] for name in NAMES)
        q2, k2, v2, bias2 = (unflatten(t, 2, (last - first, 2)) for t in parts)
        buffers = _put(buffers, merge(q2, k2, v2, bias2), starts[level] + first, None)
    return Pyramid(buffers["q"], buffers["k"], buffers["v"], buffers["bias"], starts), buffers


def extend_rows(
    state: State, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, new: Front | None, cut: Scheme
) -> tuple[Pyramid, State]:
    """Put new tokens behind the `seen` ones of each row, and make the segments that they may have completed.

    Shapes:
        q, k: `[B, H, L, D]`, v: `[B, H, L, Dv]`, by rank among the new tokens; seen: `[B]`
    """
    starts = _starts(_capacity(state, cut), cut)
    length, device = k.shape[2], k.device
    ranks = seen[:, None] + torch.arange(length, device=device)
    slots = ranks if new is None else torch.where(new.real, ranks, starts[-1])
    buffers = _put(state, (q, k, v, torch.zeros_like(k[..., :1])), None, slots)
    for level in range(1, len(starts) - 1):
        below, begin, end = starts[level - 1], starts[level], starts[level + 1]
        count = min((length - 1 >> level) + 2, end - begin)
        segment = (seen >> level)[:, None] + torch.arange(count, device=device)
        inside = segment < end - begin
        parts = below + 2 * segment[..., None] + torch.arange(2, device=device)
        pairs = _at(buffers, torch.where(inside[..., None], parts, starts[-1]).flatten(1))
        q2, k2, v2, bias2 = (unflatten(t, 2, (count, 2)) for t in pairs)
        merged = merge(q2, k2, v2, bias2)
        buffers = _put(buffers, merged, None, torch.where(inside, begin + segment, starts[-1]))
    return Pyramid(buffers["q"], buffers["k"], buffers["v"], buffers["bias"], starts), buffers


def recent(state: State, seen: Tensor, length: int, before: int, cut: Scheme) -> Tensor:
    """The values of the new tokens and of `before` tokens in front of them, zeros where there were none.

    Shapes:
        seen: `[B]` -> `[B, H, before + length, Dv]`
    """
    rank = seen[:, None] - before + torch.arange(before + length, device=seen.device)
    values = _at({"v": state["v"]}, rank.clamp(0, _capacity(state, cut) - 1))[0]
    return values.masked_fill((rank < 0)[:, None, :, None], 0)


def _starts(max_len: int, cut: Scheme) -> tuple[int, ...]:
    starts = [0]
    for level in range(cut.levels(max_len) + 1):
        starts.append(starts[-1] + (max_len >> level))
    return tuple(starts)


def _capacity(state: State, cut: Scheme) -> int:
    """For how many tokens the buffers were made, told from their size, so that the state is tensors alone."""
    entries, low, high = state["k"].shape[2] - 1, 0, state["k"].shape[2]
    while low < high:
        middle = (low + high) // 2
        if _starts(middle, cut)[-1] < entries:
            low = middle + 1
        else:
            high = middle
    return low


def _put(buffers: State, rows: tuple[Tensor, ...], start: int | None, slots: Tensor | None) -> State:
    cache = {"start": start, "slots": slots}
    return {name: write(buffers[name], x, cache) for name, x in zip(NAMES, rows, strict=True)}


def _at(buffers: State, index: Tensor) -> list[Tensor]:
    where = index[:, None, :, None]
    return [x.gather(2, where.expand(-1, x.shape[1], -1, x.shape[3])) for n, x in buffers.items() if n in NAMES]
