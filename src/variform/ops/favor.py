"""Softmax attention through positive random features (FAVOR+, Choromanski et al. 2020, arXiv:2009.14794)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from variform.errors import ShapeError
from variform.ops.chunks import (
    Borders,
    borders,
    by_row,
    carried,
    chunk_size,
    chunks_of,
    in_chunks,
    joined,
    runs_of,
    token_places,
    wide_dtype,
)

__all__ = [
    "FavorState",
    "Features",
    "favor_attention",
    "favor_state",
    "log_features",
    "naive_favor_attention",
    "orthogonal_blocks",
    "orthogonal_features",
]

CHUNK = 128
"""Tokens that see each other through products of features; older ones through the state."""

NOTHING = -1e30
"""The logarithm of a scale that stands for no key at all: finite, so that differences of two stay numbers."""

Features = Literal["sm_orf", "sm_hyp", "sm_reg"]
"""Which random features: see `log_features` and `orthogonal_features`."""


def orthogonal_blocks(
    blocks: int, dim: int, *, generator: torch.Generator | None = None, device: object = None
) -> Tensor:
    """Random orthogonal matrices `[blocks, dim, dim]`, uniform in direction."""
    normal = torch.randn(blocks, dim, dim, generator=generator, device=device)  # type: ignore[call-overload]
    q, r = torch.linalg.qr(normal)
    # Without the signs of R's diagonal the directions are not uniform (Mezzadri 2007, arXiv:math-ph/0609050).
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]  # type: ignore[no-any-return]


def orthogonal_features(
    dim: int, count: int, regular: bool = False, *, generator: torch.Generator | None = None, device: object = None
) -> Tensor:
    """Random directions `[dim, count]`, orthogonal in each block of `dim` columns.

    The lengths are those of Gaussian vectors (chi-distributed), or sqrt(dim) with `regular`.
    """
    blocks = -(-count // dim)
    rows = orthogonal_blocks(blocks, dim, generator=generator, device=device)
    if regular:
        rows = rows * math.sqrt(dim)
    else:
        lengths = torch.randn(blocks, dim, dim, generator=generator, device=device)  # type: ignore[call-overload]
        rows = rows * lengths.norm(dim=-1, keepdim=True)
    return rows.reshape(blocks * dim, dim)[:count].T.contiguous()


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Without autocast, where there is one."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def log_features(
    x: Tensor, features: Tensor, mirrored: bool, normalize: bool = False, temperature: float | None = None
) -> tuple[Tensor, Tensor]:
    """Logarithms of positive features phi with E[phi(q) . phi(k)] = exp(q . k / sqrt(D)), up to a constant factor.

    log phi(x) = x' W - |x'|^2 / 2 with x' = x / D^(1/4), in two parts, of which the second is one number a token;
    `mirrored` appends those of -W (hyperbolic features).

    Args:
        normalize: first scale each x to the length sqrt(D).
        temperature: what x is multiplied by, in place of D^(-1/4).

    Shapes: x `[..., D]`, features `[D, m]` -> `[..., m]`, or `[..., 2 m]` when mirrored, and `[..., 1]`; float32 for
        half precision.
    """
    wide = wide_dtype(x.dtype)
    x = x.to(wide)
    if normalize:
        x = functional.rms_norm(x, x.shape[-1:], eps=1e-12)
    x = x * (x.shape[-1] ** -0.25 if temperature is None else temperature)
    with _full_precision(x):  # what stands in an exponent does not bear rounding to bfloat16
        projected = x @ features.to(wide)
    projected = torch.cat((projected, -projected), -1) if mirrored else projected
    return projected, -0.5 * x.square().sum(-1, keepdim=True)


class FavorState(NamedTuple):
    """What the recurrence keeps of the past.

    Shapes: s `[B, H, m, Dv + 1]` the sum of phi(k) (v, 1)^T / exp(scale), scale `[B, H]` the largest log phi(k) of the
        document, segment `[B]` the id of the last token.
    """

    s: Tensor
    scale: Tensor
    segment: Tensor


def favor_state(
    batch: int, heads: int, count: int, dim_v: int, dtype: torch.dtype, device: torch.device | str | None = None
) -> FavorState:
    """The state before the first token, for `count` features."""
    wide = wide_dtype(dtype)
    return FavorState(
        torch.zeros(batch, heads, count, dim_v + 1, dtype=wide, device=device),
        torch.full((batch, heads), NOTHING, dtype=wide, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )


def favor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    offset: Tensor | None = None,
    epsilon: float = 0.0,
    k_valid: Tensor | None = None,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
    state: FavorState | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, FavorState | None]:
    """Attention with weights phi(q_i) . phi(k_j), normalised over j; phi is given by its logarithm.

    Nothing overflows or vanishes, however large the logarithms: a query's features are divided by their largest, which
    cancels, and sums over keys by the largest feature of the keys **so far in the document**, which cancels too. A
    query without keys gives zeros.

    Args:
        q, k: log phi, the first part alone.
        offset: the second part of log phi(k); that of the queries cancels.
        causal: query i sees keys j <= i; needs Lq == Lk. Prefix sums over the sequence, in O(L).
        epsilon: added to the features of a token, relative to its largest one.
        k_valid: which keys are real; the others may hold anything.
        q_segments, k_segments: given together, as for `kernel_attention`.
        state: history before this chunk of tokens (causal only), from the call before or `favor_state`.
        chunk: block length of the causal form.

    Shapes: q `[B, H, Lq, m]`, k `[B, H, Lk, m]`, v `[B, H, Lk, Dv]`, offset `[B, H, Lk, 1]`, k_valid bool `[B, Lk]` ->
        `[B, H, Lq, Dv]` and the state after the last token (None when not causal).
    """
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ShapeError(f"favor attention: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} do not fit")
    if causal and q.shape[2] != k.shape[2]:
        raise ShapeError(f"causal favor attention needs as many queries as keys, got {q.shape[2]} and {k.shape[2]}")
    if not causal and state is not None:
        raise ShapeError("a state is the history of causal attention; causal=False cannot use it")
    if k_valid is not None:
        k = k.masked_fill(~k_valid[:, None, :, None], 0)
    (q, _), (k, scale) = _scaled(q, epsilon), _scaled(k, epsilon)
    scale = (scale if offset is None else scale + offset)[..., 0]
    values = functional.pad(v.to(wide_dtype(v.dtype)), (0, 1), value=1.0)
    if k_valid is not None:
        scale = scale.masked_fill(~k_valid[:, None, :], NOTHING)
        values = values.masked_fill(~k_valid[:, None, :, None], 0)  # neither in sums nor in what they are divided by
    if causal:
        sums, state = _causal(q, k, values, scale, k_valid, k_segments, state, chunk)
    else:
        sums = _every(q, k, values, scale, q_segments, k_segments)
    weight = sums[..., -1:]
    return (sums[..., :-1] / weight.masked_fill(weight == 0, 1)).to(v.dtype), state


def _scaled(logarithms: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Features divided by the largest of each token, to which `epsilon` is relative; and the divisor's logarithm."""
    largest = logarithms.amax(-1, keepdim=True)
    fixed = largest.detach()  # the divisor cancels in the end; the offset that is relative to it does not
    features = (logarithms - fixed).exp()
    return features + epsilon * (largest - fixed).exp() if epsilon else features, fixed


def _every(q: Tensor, k: Tensor, values: Tensor, scale: Tensor, q_ids: Tensor | None, k_ids: Tensor | None) -> Tensor:
    """Sums over all keys, or over those with the query's id."""
    if q_ids is None or k_ids is None:
        factors = (scale - scale.detach().amax(-1, keepdim=True)).exp()
        return q @ (k.transpose(-1, -2) @ (values * factors[..., None]))
    same = by_row(q_ids, q.shape[0])[:, None, :, None] == by_row(k_ids, q.shape[0])[:, None, None, :]
    scales = scale[:, :, None, :].masked_fill(~same, NOTHING)
    factors = (scales - scales.detach().amax(-1, keepdim=True)).exp()
    return (q @ k.transpose(-1, -2) * factors.masked_fill(scales == NOTHING, 0)) @ values


def _causal(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    scale: Tensor,
    valid: Tensor | None,
    segments: Tensor | None,
    state: FavorState | None,
    chunk: int,
) -> tuple[Tensor, FavorState]:
    batch, heads, length, count = q.shape
    if state is None:
        state = favor_state(batch, heads, count, values.shape[-1] - 1, values.dtype, values.device)
    size = chunk_size(length, chunk)
    found = None if segments is None else borders(segments, valid, state.segment, size)
    places = token_places(chunks_of(length, size), size, q.device).clamp(max=length - 1)
    largest = _largest_so_far(scale.detach(), state.scale, segments, valid, state.segment)[:, :, places]
    q, k, values = (in_chunks(t, size) for t in (q, k, values))
    pairs, past, rest, kept = _factors(scale[:, :, places], largest, state.scale, found)
    before, last = carried(k.transpose(-1, -2) @ (values * rest[..., None]), kept[..., None], state.s)
    sums = (q @ k.transpose(-1, -2) * pairs) @ values + (q @ before) * past[..., None]
    new = FavorState(last, largest[:, :, -1, -1], state.segment if found is None else found.ids)
    return joined(sums, length, size), new


def _factors(scale: Tensor, largest: Tensor, before: Tensor, found: Borders | None) -> tuple[Tensor, ...]:
    """What brings sums to the scale of the token that reads them: for pairs of a chunk's tokens, for the past as each
    token sees it, for each token as the next chunk sees it, and for the past as the next chunk sees it.

    Shapes: scale, largest `[B, H, n, size]`, before `[B, H]`
    """
    size = scale.shape[-1]
    end = largest[..., -1]
    start = torch.cat((before[..., None], end), -1)[..., :-1]
    later = torch.ones(size, size, dtype=torch.bool, device=scale.device).triu(1)
    pairs = (scale[..., None, :] - largest[..., :, None]).masked_fill(later, NOTHING)
    past, rest, kept = start[..., None] - largest, scale - end[..., None], start - end
    if found is not None:
        pairs = pairs.masked_fill(~found.pairs, NOTHING)
        past, rest = past.masked_fill(~found.first, NOTHING), rest.masked_fill(~found.last, NOTHING)
        kept = kept.masked_fill(~found.through, NOTHING)
    return pairs.exp(), past.exp(), rest.exp(), kept.exp()


def _largest_so_far(
    scale: Tensor, before: Tensor, segments: Tensor | None, valid: Tensor | None, previous: Tensor
) -> Tensor:
    """The largest scale of the document up to each token, `[B, H, L]`, the tokens before the first one included."""
    if segments is None:
        return torch.maximum(scale, before[..., None]).cummax(-1).values
    length = scale.shape[-1]
    runs = runs_of(by_row(segments, scale.shape[0]), valid, previous)[0][:, None]
    found = torch.where(runs == 0, torch.maximum(scale, before[..., None]), scale)
    if torch.compiler.is_exporting():  # the number of steps below is not open
        same = (runs[..., :, None] == runs[..., None, :]).tril()
        return found[..., None, :].masked_fill(~same, NOTHING).amax(-1)
    step = 1
    while step < length:
        same = runs[..., step:] == runs[..., :-step]
        larger = torch.maximum(found[..., step:], found[..., :-step])
        found = torch.cat((found[..., :step], torch.where(same, larger, found[..., step:])), -1)
        step *= 2
    return found


def naive_favor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    offset: Tensor | None = None,
    epsilon: float = 0.0,
    k_valid: Tensor | None = None,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
) -> Tensor:
    """`favor_attention` without a state, through all pairs and without any scaling; the oracle."""
    k = k if offset is None else k + offset
    q, k = (t.exp() + epsilon * t.amax(-1, keepdim=True).exp() for t in (q, k))
    weights = q @ k.transpose(-1, -2)
    if causal:
        weights = weights.tril()
    if k_valid is not None:
        weights = weights.masked_fill(~k_valid[:, None, None, :], 0)
    if q_segments is not None and k_segments is not None:
        same = by_row(q_segments, len(q))[:, None, :, None] == by_row(k_segments, len(q))[:, None, None, :]
        weights = weights.masked_fill(~same, 0)
    weight = weights.sum(-1, keepdim=True)
    return weights @ v / weight.masked_fill(weight == 0, 1)
