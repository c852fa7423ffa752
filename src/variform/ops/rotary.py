"""Rotary position embedding: pairs of features turned by an angle proportional to the position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from variform.errors import ConfigError, ShapeError

__all__ = ["apply_rotary", "rotary_frequencies", "rotary_rows", "rotary_tables", "rotate"]


def rotary_frequencies(dim: int, base: float = 10000.0, ntk: float = 1.0) -> Tensor:
    """Angle per position of each pair: base ** (-2i / dim), float64 `[dim / 2]`.

    Args:
        dim: features that are rotated, even.
        base: the longest wavelength over 2 pi, roughly.
        ntk: length ratio r of the NTK-aware rescaling, base * r ** (dim / (dim - 2)); 1 = none.

    Errors: `ConfigError` for an odd dim, and for ntk != 1 with dim 2, where the formula has no value.
    Paper: https://arxiv.org/abs/2104.09864
    """
    if dim < 2 or dim % 2:
        raise ConfigError(f"rotary: an even number of rotated features is needed, got {dim}")
    if ntk != 1.0:
        if dim == 2 or ntk <= 0:
            raise ConfigError(f"rotary: ntk={ntk} needs a positive ratio and more than 2 rotated features")
        base = base * ntk ** (dim / (dim - 2))
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)


def rotary_tables(
    length: int,
    dim: int,
    base: float = 10000.0,
    *,
    interpolation: float = 1.0,
    ntk: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all angles, `[length, dim / 2]` each.

    Angles are taken in float64: float32 is off by 1e-3 rad at position 10^5.

    Args:
        length: positions 0..length-1.
        interpolation: positions are divided by this (linear scaling of the context).
        ntk: see `rotary_frequencies`.

    Papers: https://arxiv.org/abs/2104.09864, interpolation https://arxiv.org/abs/2306.15595
    """
    if interpolation <= 0:
        raise ConfigError(f"rotary: interpolation={interpolation} must be > 0")
    positions = torch.arange(length, dtype=torch.float64, device="cpu") / interpolation
    angles = positions[:, None] * rotary_frequencies(dim, base, ntk)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def rotary_rows(
    cos: Tensor, sin: Tensor, length: int, positions: Tensor | None = None, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """The rows of the tables that a sequence needs, in the form `rotate` takes; shared by queries, keys and layers.

    Args:
        cos, sin: `[positions, dim / 2]`.
        length: tokens; used when positions is None (0..length-1).
        positions: integers `[L]` or `[B, L]`.
        interleaved: which features form a pair: (2i, 2i + 1), else (i, i + dim / 2).

    Shapes: -> broadcastable to `[B, H, L, dim / 2]` if interleaved, else `[B, H, L, dim]`.
    Errors: `ShapeError` when the tables are shorter than `length`.
    """
    if positions is None:
        if length > cos.shape[0]:
            raise ShapeError(f"rotary: {length} positions asked for, the tables hold {cos.shape[0]}")
        cos, sin = cos[:length], sin[:length]
    else:
        cos, sin = functional.embedding(positions, cos), functional.embedding(positions, sin)
        if positions.dim() == 2:
            cos, sin = cos[:, None], sin[:, None]
    if interleaved:
        return cos, sin
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, rows: tuple[Tensor, Tensor], *, interleaved: bool = False) -> Tensor:
    """Turn the first `dim` features of x by the angles of `rows`; the others pass.

    Formula: (a, b) -> (a cos - b sin, b cos + a sin) for each pair.
    Shapes: x `[B, H, L, D]`, D >= dim -> the same; rows from `rotary_rows` with the same `interleaved`.
    Errors: `ShapeError` when more features are to be turned than there are.
    """
    cos, sin = rows
    dim = cos.shape[-1] * (2 if interleaved else 1)
    if dim > x.shape[-1]:
        raise ShapeError(f"rotary: {dim} features are to be turned, there are {x.shape[-1]}")
    turn = _rotate_interleaved if interleaved else _rotate_halves
    if dim == x.shape[-1]:
        return turn(x, cos, sin)
    return torch.cat((turn(x[..., :dim], cos, sin), x[..., dim:]), dim=-1)


def apply_rotary(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None, *, interleaved: bool = False
) -> Tensor:
    """`rotate` with the rows for `positions` of x: `[B, H, L, D]` -> the same. Arguments as in `rotary_rows`."""
    return rotate(x, rotary_rows(cos, sin, x.shape[-2], positions, interleaved=interleaved), interleaved=interleaved)


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Rolling by half the features swaps the halves; the sign of -sin is in the rows. The quickest of six forms tried.
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos.to(x.dtype), swapped, sin.to(x.dtype))


def _rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    if torch.compiler.is_compiling():
        # Compilers do not fuse complex numbers.
        a, b = pairs.unbind(-1)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    turned = torch.view_as_complex(pairs.to(wide).contiguous()) * torch.complex(cos.to(wide), sin.to(wide))
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
