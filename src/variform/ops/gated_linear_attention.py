"""Linear attention whose history fades: one rate of decay a head, or one a feature of the keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from variform.errors import ShapeError
from variform.ops.chunks import Borders, blocks_below, borders, carried, chunk_size, in_chunks, joined, wide_dtype

__all__ = ["GatedState", "decayed_attention", "gated_attention", "gated_state", "naive_gated_attention"]

CHUNK = 64
"""Tokens that see each other through products of queries and keys; older ones through the state."""


class GatedState(NamedTuple):
    """What the recurrence keeps of the past.

    Shapes: s `[B, H, D, Dv]` the faded sum of k v^T, segment `[B]` the id of the last token.
    """

    s: Tensor
    segment: Tensor


def gated_state(
    batch: int, heads: int, dim: int, dim_v: int, dtype: torch.dtype, device: torch.device | str | None = None
) -> GatedState:
    """The state before the first token; float32 for half-precision inputs, because it is a long sum."""
    return GatedState(
        torch.zeros(batch, heads, dim, dim_v, dtype=wide_dtype(dtype), device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )


def decayed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    k_valid: Tensor | None = None,
    segments: Tensor | None = None,
    state: GatedState | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, GatedState]:
    """S_t = a_t S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, with one number a_t = exp(log_decay_t) a head, in O(L).

    Tokens that are not valid change nothing: they neither add to the state nor let it fade.

    Args:
        log_decay: at most 0.
        k_valid: which tokens are real; the others may hold anything.
        segments: a change of id from one valid token to the next starts anew, also between calls.
        state: history before this chunk of tokens, from the call before or `gated_state`.
        chunk: block length.

    Shapes: q, k `[B, H, L, D]`, v `[B, H, L, Dv]`, log_decay `[B, H, L]`, k_valid bool `[B, L]`, segments `[L]` or
        `[B, L]` -> `[B, H, L, Dv]` and the state after the last token.
    """
    q, k, v, log_decay, state = _prepared(q, k, v, log_decay[..., None], k_valid, state)
    length, size = q.shape[2], chunk_size(q.shape[2], chunk)
    found = None if segments is None else borders(segments, k_valid, state.segment, size)
    total = in_chunks(log_decay, size)[..., 0].cumsum(-1)
    q, k, v = (in_chunks(t, size) for t in (q, k, v))
    pairs, past, rest, kept = decays(total, found)
    before, last = carried((k * rest[..., None]).transpose(-1, -2) @ v, kept[..., None], state.s)
    out = (q @ k.transpose(-1, -2) * pairs) @ v + (q * past[..., None]) @ before
    return joined(out, length, size), GatedState(last, state.segment if found is None else found.ids)


def decays(total: Tensor, found: Borders | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the summed logarithms within each chunk `[B, H, n, size]` to the factors of

    pairs of its tokens `[.., size, size]`, the past as each token sees it, each token as the next chunk sees it, and
    the past as the next chunk sees it `[B, H, n]`.
    """
    size = total.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)
    end = total[..., -1:]
    # Masked before the exponential: what lies ahead would overflow, and 0 * inf reaches the gradient.
    pairs = (total[..., :, None] - total[..., None, :]).masked_fill(later, -torch.inf)
    past, rest, kept = total, end - total, end[..., 0]
    if found is not None:
        pairs = pairs.masked_fill(~found.pairs, -torch.inf)
        past, rest = past.masked_fill(~found.first, -torch.inf), rest.masked_fill(~found.last, -torch.inf)
        kept = kept.masked_fill(~found.through, -torch.inf)
    return pairs.exp(), past.exp(), rest.exp(), kept.exp()


def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    k_valid: Tensor | None = None,
    segments: Tensor | None = None,
    state: GatedState | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, GatedState]:
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, with a_t = exp(log_decay_t) a feature, in O(L log chunk).

    Within a chunk, blocks of 1, 2, 4, ... tokens see the block before them: decays are taken relative to the border
    between the two, so that no exponent is positive and none of them overflows, however fast the state fades.

    Args:
        log_decay: at most 0.
        k_valid, segments, state: as for `decayed_attention`.
        chunk: block length, a power of two.

    Shapes: q, k, log_decay `[B, H, L, D]`, v `[B, H, L, Dv]` -> `[B, H, L, Dv]` and the state after the last token.
    """
    q, k, v, log_decay, state = _prepared(q, k, v, log_decay, k_valid, state)
    length, size = q.shape[2], chunk_size(q.shape[2], chunk, power=True)
    found = None if segments is None else borders(segments, k_valid, state.segment, size)
    q, k, v, total = in_chunks(q, size), in_chunks(k, size), in_chunks(v, size), in_chunks(log_decay, size).cumsum(-2)
    past, rest, kept = total, total[..., -1:, :] - total, total[..., -1, :]
    if found is not None:
        past = past.masked_fill(~found.first[..., None], -torch.inf)
        rest = rest.masked_fill(~found.last[..., None], -torch.inf)
        kept = kept.masked_fill(~found.through[..., None], -torch.inf)
    before, last = carried((k * rest.exp()).transpose(-1, -2) @ v, kept.exp(), state.s)
    out = (q * k).sum(-1, keepdim=True) * v + (q * past.exp()) @ before
    block = 1
    while block < size:
        out = out + _block_before(q, k, v, total, None if found is None else found.pairs, block)
        block *= 2
    return joined(out, length, size), GatedState(last, state.segment if found is None else found.ids)


def _block_before(q: Tensor, k: Tensor, v: Tensor, total: Tensor, pairs: Tensor | None, block: int) -> Tensor:
    """What every second block of tokens in each chunk gets from the block before it, and 0 for the others."""
    q, k, v, total = (t.view(*t.shape[:-2], -1, 2, block, t.shape[-1]) for t in (q, k, v, total))
    earlier, later = total[..., 0, :, :], total[..., 1, :, :]
    border = earlier[..., -1:, :]
    weights = (q[..., 1, :, :] * (later - border).exp()) @ (k[..., 0, :, :] * (border - earlier).exp()).transpose(
        -1, -2
    )
    if pairs is not None:
        weights = weights.masked_fill(~blocks_below(pairs, block), 0)
    given = weights @ v[..., 0, :, :]
    return torch.stack((torch.zeros_like(given), given), -3).flatten(-4, -2)


def _prepared(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, k_valid: Tensor | None, state: GatedState | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, GatedState]:
    """Inputs without what is not valid, in the type of long sums, and the state."""
    sizes = q.shape[:3]
    if k.shape != q.shape or v.shape[:3] != sizes or log_decay.shape[:3] != sizes:
        shapes = [list(t.shape) for t in (q, k, v, log_decay)]
        raise ShapeError(f"q, k, v and decays of one length and as many heads are needed, not {shapes}")
    if k_valid is not None:
        invalid = ~k_valid[:, None, :, None]
        q, k, v, log_decay = (t.masked_fill(invalid, 0) for t in (q, k, v, log_decay))
    wide = wide_dtype(v.dtype)
    if state is None:
        state = gated_state(q.shape[0], q.shape[1], q.shape[3], v.shape[3], v.dtype, v.device)
    return q.to(wide), k.to(wide), v.to(wide), log_decay.to(wide), state


def naive_gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    k_valid: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """`gated_attention` token by token, and `decayed_attention` with decays of `[B, H, L, 1]`; the oracle."""
    batch, heads, length, dim = q.shape
    rows: list[Tensor] = []
    for row in range(batch):
        state = q.new_zeros(heads, dim, v.shape[3])
        document = None
        outs: list[Tensor] = []
        for t in range(length):
            if k_valid is not None and not k_valid[row, t]:
                outs.append(v.new_zeros(heads, v.shape[3]))
                continue
            if segments is not None:
                here = int((segments if segments.dim() == 1 else segments[row])[t])
                state = state if here == document else torch.zeros_like(state)
                document = here
            state = log_decay[row, :, t].exp()[..., None] * state + k[row, :, t, :, None] * v[row, :, t, None, :]
            outs.append((q[row, :, t, None] @ state)[:, 0])
        rows.append(torch.stack(outs, 1))
    return torch.stack(rows)
