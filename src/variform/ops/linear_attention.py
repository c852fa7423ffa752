"""Linear attention: a feature map instead of the softmax, so that history is one matrix a head."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from variform.errors import ShapeError
from variform.ops.chunks import by_row, chunk_size, in_chunks, joined, runs_of, token_places, wide_dtype

__all__ = [
    "LinearState",
    "cosine_features",
    "elu_features",
    "kernel_attention",
    "linear_attention",
    "linear_state",
    "naive_kernel_attention",
    "naive_linear_attention",
]

CHUNK = 128
"""Tokens that see each other through the quadratic form; older ones through the state."""


class LinearState(NamedTuple):
    """What the recurrence keeps of the past.

    Shapes: s `[B, H, D, Dv]` the sum of k v^T, z `[B, H, D]` the sum of k, segment `[B]` the id of the last token.
    """

    s: Tensor
    z: Tensor
    segment: Tensor


def linear_state(
    batch: int, heads: int, dim: int, dim_v: int, dtype: torch.dtype, device: torch.device | str | None = None
) -> LinearState:
    """The state before the first token; float32 for half-precision inputs, because it is a long sum."""
    wide = wide_dtype(dtype)
    return LinearState(
        torch.zeros(batch, heads, dim, dim_v, dtype=wide, device=device),
        torch.zeros(batch, heads, dim, dtype=wide, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1 as max(x, 0) + exp(min(x, 0)), which unlike the sum with 1 keeps its digits for small values."""
    return x.relu() + x.clamp(max=0).exp()


def cosine_features(x: Tensor, positions: Tensor | None, longest: int) -> Tensor:
    """(relu(x) cos a, relu(x) sin a) with a = pi / 2 * position / longest, so that products are weighted by cos(a - b).

    Paper: https://arxiv.org/abs/2202.08791

    Shapes: x `[B, H, L, D]`, positions `[L]` or `[B, L]`, None for 0, 1, ... -> `[B, H, L, 2 D]`
    """
    wide = wide_dtype(x.dtype)
    places = torch.arange(x.shape[2], device=x.device) if positions is None else positions
    angles = (places.to(wide) * (math.pi / 2 / longest))[..., None]
    angles = angles[:, None] if angles.dim() == 3 else angles
    return (x.relu().to(wide)[..., None, :] * torch.stack((angles.cos(), angles.sin()), -2)).flatten(-2).to(x.dtype)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    k_valid: Tensor | None = None,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
    state: LinearState | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, LinearState | None]:
    """`kernel_attention` with the features elu(x) + 1. Paper: https://arxiv.org/abs/2006.16236"""
    return kernel_attention(
        elu_features(q),
        elu_features(k),
        v,
        causal=causal,
        k_valid=k_valid,
        q_segments=q_segments,
        k_segments=k_segments,
        state=state,
        chunk=chunk,
    )


def kernel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    k_valid: Tensor | None = None,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
    state: LinearState | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, LinearState | None]:
    """Attention with weights q_i . k_j / sum_j q_i . k_j on non-negative features, in O(L).

    A query without keys (padding before the first token) gives zeros. Invalid keys enter neither sums nor state, and
    may hold anything, NaN included.

    Args:
        q, k: features >= 0.
        causal: query i sees keys j <= i; needs Lq == Lk.
        q_segments, k_segments: given together. Causal: the same ids twice, and a change of id from one valid token to
            the next starts anew, also between calls. Otherwise attention stays within equal ids, in O(Lq Lk).
        state: history before this chunk of tokens (causal only), from the call before or `linear_state`.
        chunk: block length of the causal form.

    Shapes: q `[B, H, Lq, D]`, k `[B, H, Lk, D]`, v `[B, H, Lk, Dv]`, k_valid bool `[B, Lk]`, segments `[L]` or `[B, L]`
        -> out `[B, H, Lq, Dv]` and the state after the last token (None when not causal).
    Errors: `ShapeError` for sizes that do not fit and for a state without `causal`.
    """
    _check(q, k, v, causal, k_valid, q_segments, k_segments, state)
    # The size of a query cancels, and small ones would take the digits of products with small keys.
    largest = q.detach().amax(-1, keepdim=True)
    q = q / largest.masked_fill(largest == 0, 1)
    if k_valid is not None:
        invalid = ~k_valid[:, None, :, None]
        k, v = k.masked_fill(invalid, 0), v.masked_fill(invalid, 0)
    if causal:
        return _causal(q, k, v, k_valid, k_segments, state, chunk)
    if q_segments is not None and k_segments is not None:
        same = by_row(q_segments, q.shape[0])[:, None, :, None] == by_row(k_segments, q.shape[0])[:, None, None, :]
        weights = (q @ k.transpose(-1, -2)).masked_fill(~same, 0)
        return _divide(weights @ v, weights.sum(-1)), None
    return _divide(q @ (k.transpose(-1, -2) @ v), (q @ k.sum(-2)[..., None])[..., 0]), None


def _causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_valid: Tensor | None,
    segments: Tensor | None,
    state: LinearState | None,
    chunk: int,
) -> tuple[Tensor, LinearState]:
    batch, heads, length, dim = q.shape
    if state is None:
        state = linear_state(batch, heads, dim, v.shape[-1], q.dtype, q.device)
    size = chunk_size(length, chunk)
    q, k, v = (in_chunks(t, size) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2)).tril()
    ends, segment, last_k, old_q = None, state.segment, k, q
    if segments is not None:
        runs, segment = runs_of(by_row(segments, batch), k_valid, segment)
        runs = runs[:, None, token_places(q.shape[2], size, q.device).clamp(max=length - 1)]
        ends = functional.pad(runs[..., -1], (1, 0))  # run 0 is the state's
        before, tails = ends[..., :-1], ends[..., 1:]
        weights = weights.masked_fill(runs[..., :, None] != runs[..., None, :], 0)
        last_k = k.masked_fill((runs != tails[..., None])[..., None], 0)
        old_q = q.masked_fill((runs != before[..., None])[..., None], 0)
    s = _histories(last_k.transpose(-1, -2) @ v, state.s, ends)
    z = _histories(last_k.sum(-2), state.z, ends)
    numerator = weights @ v + old_q @ s[:, :, :-1].to(q.dtype)
    denominator = weights.sum(-1) + (old_q @ z[:, :, :-1, :, None].to(q.dtype))[..., 0]
    out = joined(_divide(numerator, denominator), length, size)
    return out, LinearState(s[:, :, -1], z[:, :, -1], segment)


def _histories(sums: Tensor, initial: Tensor, ends: Tensor | None) -> Tensor:
    """Sums over all chunks before each chunk, and over all of them: `[B, H, n, ...]` -> `[B, H, n + 1, ...]`.

    With `ends`, the run that the state and each chunk end in `[B, 1, n + 1]`, only equal runs are summed: a gated
    recurrence with gates 0 and 1, written as one small matrix product because a difference of long sums would cancel.
    """
    bank = torch.cat((initial[:, :, None], sums.to(initial.dtype)), dim=2)
    if ends is None:
        return bank.cumsum(2)
    gates = (ends[..., :, None] == ends[..., None, :]).tril().to(bank.dtype)
    return (gates @ bank.flatten(3)).view_as(bank)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where a query has no keys."""
    wide = wide_dtype(numerator.dtype)
    denominator = denominator.to(wide)[..., None]
    # A division, not a product with the reciprocal: its gradient would square the reciprocal, which overflows for
    # features as small as exp(-50), and 0 * inf reaches every parameter.
    return (numerator.to(wide) / denominator.masked_fill(denominator == 0, 1)).to(numerator.dtype)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    k_valid: Tensor | None,
    q_segments: Tensor | None,
    k_segments: Tensor | None,
    state: LinearState | None,
) -> None:
    q_len, k_len = q.shape[2], k.shape[2]
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ShapeError(f"linear attention: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} do not fit")
    if causal and q_len != k_len:
        raise ShapeError(f"causal linear attention needs as many queries as keys, got {q_len} and {k_len}")
    if not causal and state is not None:
        raise ShapeError("a state is the history of causal attention; causal=False cannot use it")
    if k_valid is not None and k_valid.shape != (q.shape[0], k_len):
        raise ShapeError(f"k_valid: [{q.shape[0]}, {k_len}] expected, got {list(k_valid.shape)}")
    if (q_segments is None) != (k_segments is None):
        raise ShapeError("q_segments and k_segments must be given together")
    for name, ids, length in (("q_segments", q_segments, q_len), ("k_segments", k_segments, k_len)):
        if ids is not None and ids.shape not in ((length,), (q.shape[0], length)):
            raise ShapeError(f"{name}: [{length}] or [{q.shape[0]}, {length}] expected, got {list(ids.shape)}")


def naive_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    k_valid: Tensor | None = None,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
) -> Tensor:
    """`linear_attention` without a state, through all pairs; the oracle."""
    return naive_kernel_attention(
        elu_features(q),
        elu_features(k),
        v,
        causal=causal,
        k_valid=k_valid,
        q_segments=q_segments,
        k_segments=k_segments,
    )


def naive_kernel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    k_valid: Tensor | None = None,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
) -> Tensor:
    """`kernel_attention` without a state, through all pairs; equal ids are one segment wherever they stand."""
    weights = q @ k.transpose(-1, -2)
    if causal:
        weights = weights.tril()
    if k_valid is not None:
        weights = weights.masked_fill(~k_valid[:, None, None, :], 0)
    if q_segments is not None and k_segments is not None:
        q_rows, k_rows = by_row(q_segments, q.shape[0]), by_row(k_segments, q.shape[0])
        weights = weights.masked_fill((q_rows[:, :, None] != k_rows[:, None, :])[:, None], 0)
    return _divide(weights @ v, weights.sum(-1))
