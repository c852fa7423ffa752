"""Nystrom attention without causality: landmarks as means of segments, and the inverse between them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from variform.ops.shapes import unflatten

__all__ = ["Inverse", "inverse", "landmark_attention", "segment_means"]

Inverse = Literal["iterative", "exact"]


def segment_means(x: Tensor, segments: int, count: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Means over `segments` runs of tokens whose lengths differ by one at most, the longer ones last.

    A row of fewer tokens than segments has empty segments in front.

    Shapes:
        x: `[B, H, L, D]`, by rank; count: `[B]`, how many tokens of a row are real -> `[B, H, segments, D]`, and
        which segments hold a token, bool `[B, segments]` (None with no count: all)
    """
    if count is None:
        return _equal_runs(x, segments), None
    size, longer = (count // segments)[:, None], (count % segments)[:, None]
    rank = torch.arange(x.shape[2], device=x.device)
    cut = (segments - longer) * size
    late = segments - longer + (rank - cut).clamp(min=0) // (size + 1)
    segment = torch.where(rank < cut, rank // size.clamp(min=1), late)
    member = segment[:, None] == torch.arange(segments, device=x.device)[:, None]
    member = member & (rank < count[:, None])[:, None]
    held = member.sum(-1)
    weights = member.to(x.dtype) / held.clamp(min=1)[..., None]
    return weights[:, None] @ x, held > 0


def _equal_runs(x: Tensor, segments: int) -> Tensor:
    size, longer = x.shape[2] // segments, x.shape[2] % segments
    cut = (segments - longer) * size
    means = unflatten(x[:, :, :cut], 2, (segments - longer, size)).mean(3)
    if not longer:
        return means
    return torch.cat((means, unflatten(x[:, :, cut:], 2, (longer, size + 1)).mean(3)), 2)


def landmark_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_landmarks: Tensor,
    k_landmarks: Tensor,
    inverted: Inverse,
    iterations: int,
    shared_start: bool,
    k_real: Tensor | None = None,
    q_held: Tensor | None = None,
    k_held: Tensor | None = None,
) -> Tensor:
    """softmax(q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ k^T) v; paper: https://arxiv.org/abs/2102.03902

    With the exact inverse all of it is computed in float32 at least, also under autocast: small singular values blow up
    what rounding makes of the other two matrices.

    Shapes:
        q, q_landmarks: `[B, H, L, D]`, `[B, H, n, D]`, scaled; k, v, k_landmarks likewise, as many heads
        k_real: bool `[B, Lk]`; q_held, k_held: bool `[B, n]`, which landmarks there are
    """
    held = (k_real, q_held, k_held)
    if inverted == "iterative":
        return _through(q, k, v, q_landmarks, k_landmarks, inverted, iterations, shared_start, *held)
    with torch.autocast(q.device.type, enabled=False):
        wide_q, wide_k, wide_v, near_q, near_k = (_wide(t) for t in (q, k, v, q_landmarks, k_landmarks))
        y = _through(wide_q, wide_k, wide_v, near_q, near_k, inverted, iterations, shared_start, *held)
        return y.to(v.dtype)


def _through(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_landmarks: Tensor,
    k_landmarks: Tensor,
    inverted: Inverse,
    iterations: int,
    shared_start: bool,
    k_real: Tensor | None,
    q_held: Tensor | None,
    k_held: Tensor | None,
) -> Tensor:
    first = _softmax(q @ k_landmarks.transpose(-1, -2), k_held)
    middle = _softmax(q_landmarks @ k_landmarks.transpose(-1, -2), k_held)
    last = _softmax(q_landmarks @ k.transpose(-1, -2), k_real) @ v
    if q_held is not None:  # rows of zeros become columns of zeros in the inverse
        middle = middle.masked_fill(~q_held[:, None, :, None], 0)
    return first @ (inverse(middle, inverted, iterations, shared_start) @ last)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def inverse(x: Tensor, how: Inverse, iterations: int, shared_start: bool) -> Tensor:
    """The Moore-Penrose inverse of `[B, H, n, m]` with entries >= 0 and row sums of at most 1: `[B, H, m, n]`.

    Computed in float32 at least, also under autocast.

    Args:
        how: "exact" by singular values; "iterative" by the method of Razavi et al. 2014, products alone.
        iterations: how often that is improved.
        shared_start: it begins with one factor for all heads of a row, the smallest, not with each head's own.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = _wide(x)
        if how == "exact":
            exact: Tensor = torch.linalg.pinv(wide)
            return exact.to(x.dtype)
        sums = wide.sum(-2).amax(-1)
        if shared_start:
            sums = sums.amax(-1, keepdim=True)
        start = wide.transpose(-1, -2) / torch.where(sums > 0, sums, 1)[..., None, None]
        return improved(wide, start, iterations).to(x.dtype)


def improved(x: Tensor, y: Tensor, iterations: int) -> Tensor:
    """The iteration of order 4: Y <- Y (13 I - XY (15 I - XY (7 I - XY))) / 4."""
    eye = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        product = x @ y
        y = 0.25 * y @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product)))
    return y


def _softmax(scores: Tensor, real: Tensor | None) -> Tensor:
    """Weights over the keys that there are; zeros where there is none."""
    wide = torch.float32 if scores.dtype.itemsize < 4 else scores.dtype
    if real is None:
        return scores.softmax(-1, dtype=wide).to(scores.dtype)
    real = real[:, None, None, :]
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~real, lowest).softmax(-1, dtype=wide).masked_fill(~real, 0).to(scores.dtype)
