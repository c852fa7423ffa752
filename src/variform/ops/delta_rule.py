"""Linear attention whose state is corrected rather than added to: the delta rule, with or without decay."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from variform.errors import ShapeError
from variform.ops.chunks import blocks_below, borders, chunk_size, in_chunks, joined, wide_dtype
from variform.ops.gated_linear_attention import CHUNK, GatedState, decays, gated_state

__all__ = ["delta_attention", "naive_delta_attention", "unit_length", "unit_lower_inverse"]


def unit_length(x: Tensor) -> Tensor:
    """silu(x) scaled to length 1, the keys and queries of the delta rule; 0 stays 0."""
    x = functional.silu(x.to(wide_dtype(x.dtype)))
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    k_valid: Tensor | None = None,
    segments: Tensor | None = None,
    state: GatedState | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, GatedState]:
    """S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, o_t = S_t^T q_t, in O(L).

    What a key has stored is read, and replaced by a share b of the new value. Within a chunk the corrections u solve a
    triangular system, (I + L) U = B (V - past K S) with L_ij = b_i a_{i..j} k_i . k_j for j < i, whose inverse is put
    together from those of blocks of 1, 2, 4, ... tokens (Yang et al. 2024, arXiv:2406.06484 and arXiv:2412.06464).

    Args:
        k: of length 1, so that nothing grows.
        beta: from 0 to 1 (to 2, where the sign of what is stored may turn).
        log_decay: log a, at most 0; nothing fades without it.
        k_valid: which tokens are real; the others change nothing and may hold anything.
        segments: a change of id from one valid token to the next starts anew, also between calls.
        state: history before this chunk of tokens, from the call before or `gated_state`.
        chunk: block length, a power of two.

    Shapes: q, k `[B, H, L, D]`, v `[B, H, L, Dv]`, beta, log_decay `[B, H, L]`, k_valid bool `[B, L]`, segments `[L]`
        or `[B, L]` -> `[B, H, L, Dv]` and the state after the last token.
    """
    batch, heads, length, dim = q.shape
    log_decay = torch.zeros_like(beta) if log_decay is None else log_decay
    if k.shape != q.shape or any(t.shape[:3] != q.shape[:3] for t in (v, beta, log_decay)):
        shapes = [list(t.shape) for t in (q, k, v, beta, log_decay)]
        raise ShapeError(f"q, k, v, beta and decays of one length and as many heads are needed, not {shapes}")
    if torch.compiler.is_exporting() and not isinstance(length, int):
        raise ShapeError("the delta rule goes from chunk to chunk: a graph of it is for one length (dynamic=False)")
    wide = wide_dtype(v.dtype)
    if state is None:
        state = gated_state(batch, heads, dim, v.shape[3], v.dtype, v.device)
    tensors = [q, k, v, beta[..., None], log_decay[..., None]]
    if k_valid is not None:
        tensors = [t.masked_fill(~k_valid[:, None, :, None], 0) for t in tensors]
    size = chunk_size(length, chunk, power=True)
    found = None if segments is None else borders(segments, k_valid, state.segment, size)
    q, k, v, b, log_decay = (in_chunks(t.to(wide), size) for t in tensors)
    pairs, past, rest, kept = decays(log_decay[..., 0].cumsum(-1), found)
    inverse = unit_lower_inverse((b * (k @ k.transpose(-1, -2)) * pairs).tril(-1))
    values, reads = inverse @ (b * v), inverse @ (b * past[..., None] * k)
    stored, s = (k * rest[..., None]).transpose(-1, -2), state.s
    before, corrections = [], []
    for value, read, store, keep in zip(*(t.unbind(2) for t in (values, reads, stored, kept)), strict=True):
        before.append(s)
        corrections.append(value - read @ s)
        s = keep[..., None, None] * s + store @ corrections[-1]
    out = (q @ k.transpose(-1, -2) * pairs) @ torch.stack(corrections, 2)
    out = out + (q * past[..., None]) @ torch.stack(before, 2)
    return joined(out, length, size), GatedState(s, state.segment if found is None else found.ids)


def unit_lower_inverse(lower: Tensor) -> Tensor:
    """(I + L)^-1 for a strictly lower triangular L: [A 0; B D]^-1 = [A' 0; -D' B A' D'], in blocks of 1, 2, 4, ...

    By products alone, which unlike a triangular solve are fast in batches and counted as the work they are.

    Shapes: `[.., size, size]` -> the same
    """
    size = lower.shape[-1]
    found = torch.ones(*lower.shape[:-1], 1, 1, dtype=lower.dtype, device=lower.device)
    block = 1
    while block < size:
        upper, bottom = found[..., 0::2, :, :], found[..., 1::2, :, :]
        corner = -bottom @ (blocks_below(lower, block) @ upper)
        top = torch.cat((upper, torch.zeros_like(upper)), -1)
        found = torch.cat((top, torch.cat((corner, bottom), -1)), -2)
        block *= 2
    return found[..., 0, :, :]


def naive_delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    k_valid: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """`delta_attention` token by token; the oracle."""
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
            if log_decay is not None:
                state = state * log_decay[row, :, t, None, None].exp()
            key = k[row, :, t, :, None]
            stored = (key * state).sum(1, keepdim=True)
            state = state + beta[row, :, t, None, None] * key * (v[row, :, t, None, :] - stored)
            outs.append((q[row, :, t, None] @ state)[:, 0])
        rows.append(torch.stack(outs, 1))
    return torch.stack(rows)
