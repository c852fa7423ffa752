"""Fourier transforms as a way to mix tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["fourier_flops", "fourier_mix", "naive_fourier_mix"]


def fourier_mix(x: Tensor, groups: int = 1) -> Tensor:
    """Re(F_L x F_D): discrete Fourier transforms over tokens and features, and the real part.

    Half-precision inputs are transformed in float32.

    Args:
        x: features.
        groups: sets of neighbouring features, each transformed on its own.

    Shapes: x `[B, L, D]` -> `[B, L, D]`
    """
    wide = x.float() if x.dtype.itemsize < 4 else x
    wide = wide.view(*x.shape[:2], groups, x.shape[2] // groups)
    mixed: Tensor = torch.fft.fft2(wide, dim=(1, 3)).real
    return mixed.flatten(2).to(x.dtype)


def naive_fourier_mix(x: Tensor, groups: int = 1) -> Tensor:
    """`fourier_mix` by the definition: cos(2 pi (i m / L + j n / D)) summed over m and n; the oracle."""
    length, size = x.shape[1], x.shape[2] // groups
    tokens, features = torch.arange(length, dtype=x.dtype), torch.arange(size, dtype=x.dtype)
    turn = torch.outer(tokens, tokens)[:, :, None, None] / length + torch.outer(features, features) / size
    return torch.einsum("bmgn,imjn->bigj", x.view(*x.shape[:2], groups, size), (2 * math.pi * turn).cos()).flatten(2)


def fourier_flops(*sizes: int) -> int:
    """Operations of a fast Fourier transform over axes of these sizes: 5 N log2 N, N their product."""
    total = math.prod(sizes)
    return round(5 * total * math.log2(total)) if total > 1 else 0
