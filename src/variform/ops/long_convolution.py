"""Convolutions as long as the sequence, by fast Fourier transforms."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["causal_convolution", "causal_convolution_flops", "convolution", "naive_convolution"]

BLOCK = 32
"""Tokens that reach each other through a matrix product; farther ones through transforms."""


def causal_convolution(u: Tensor, taps: Tensor) -> Tensor:
    """y_t = sum_{s <= t} taps_{t - s} u_s for each feature.

    Blocks of tokens reach each other directly; then blocks in pairs, twice as large each time: the left one reaches
    the right one through a transform, in O(L log^2 L). One transform of everything would let the future into the
    past by rounding.

    Shapes: u `[B, L, D]`, taps `[L or more, D]` -> `[B, L, D]`
    """
    batch, length, dim = u.shape
    size = min(BLOCK, length)
    blocks = 1 << max(0, math.ceil(math.log2(-(-length // size))))
    u, taps = F.pad(u, (0, 0, 0, blocks * size - length)), _fitted(taps, blocks * size)
    within = _toeplitz(taps[:size]) @ u.view(batch * blocks, size, dim).permute(2, 1, 0)
    y = within.permute(2, 1, 0).reshape(batch, blocks * size, dim)
    while size < blocks * BLOCK and size < u.shape[1]:
        left = u.view(batch, -1, 2, size, dim)[:, :, 0]
        # The lag from place s on the left to place t on the right is size + t - s.
        lags = torch.cat((taps[size : 2 * size], torch.zeros_like(taps[:1]), taps[1:size]))
        spectrum = torch.fft.rfft(left, 2 * size, dim=2) * torch.fft.rfft(lags, dim=0)
        right = torch.fft.irfft(spectrum, 2 * size, dim=2)[:, :, :size]
        y = y + torch.stack((torch.zeros_like(right), right), 2).view_as(y)
        size *= 2
    return y[:, :length]


def causal_convolution_flops(batch: int, length: int, dim: int) -> int:
    """Operations of `causal_convolution`; a real transform of size n takes 2.5 n log2 n."""
    size = min(BLOCK, length)
    blocks = 1 << max(0, math.ceil(math.log2(-(-length // size))))
    total = 2 * batch * blocks * size * size * dim
    whole = blocks * size
    while size < whole:
        pairs = batch * whole // (2 * size)
        transform = round(2.5 * 2 * size * math.log2(2 * size))
        total += dim * ((2 * pairs + 1) * transform + 6 * pairs * (size + 1) + pairs * size)
        size *= 2
    return total


def convolution(u: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """y_t = sum_{s <= t} after_{t - s} u_s + sum_{s > t} before_{s - t} u_s, by one transform.

    Shapes: u `[B, L, D]`, after and before `[L or more, D]`, before_0 is not used -> `[B, L, D]`
    """
    length = u.shape[1]
    after, before = _fitted(after, length), _fitted(before, length)
    lags = torch.cat((after, torch.zeros_like(after[:1]), before[1:].flip(0)))
    spectrum = torch.fft.rfft(u, 2 * length, dim=1) * torch.fft.rfft(lags, dim=0)
    y: Tensor = torch.fft.irfft(spectrum, 2 * length, dim=1)
    return y[:, :length]


def naive_convolution(u: Tensor, after: Tensor, before: Tensor | None = None) -> Tensor:
    """Both convolutions by the definition; the oracle."""
    out = []
    for t in range(u.shape[1]):
        seen = (u[:, : t + 1] * after[: t + 1].flip(0)).sum(1)
        later = 0 if before is None else (u[:, t + 1 :] * before[1 : u.shape[1] - t]).sum(1)
        out.append(seen + later)
    return torch.stack(out, 1)


def _toeplitz(taps: Tensor) -> Tensor:
    """[size, D] to the lower triangular [D, size, size] with taps_{t - s} in row t and column s."""
    steps = torch.arange(taps.shape[0], device=taps.device)
    lag = steps[:, None] - steps
    return taps[lag.clamp(min=0)].masked_fill((lag < 0)[..., None], 0).permute(2, 0, 1)


def _fitted(taps: Tensor, length: int) -> Tensor:
    return taps[:length] if taps.shape[0] >= length else F.pad(taps, (0, 0, 0, length - taps.shape[0]))
