"""Patterns as tensors over the points of a grid: distances, samples by probability, and layouts of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from variform.errors import ConfigError, ShapeError

__all__ = ["block_layout", "expand_layout", "gaussian_weights", "grid_distances", "pad_to_blocks", "sample_pairs"]


def grid_distances(sizes: Sequence[int], p: float = 2.0, weights: Sequence[float] | None = None) -> Tensor:
    """The p-distance between every two points of a grid; p = 0 counts the axes on which they differ.

    Shapes: -> float32 `[S, S]` with S the product of the sizes.

    Args:
        sizes: points along each axis, the last axis running fastest.
        p: >= 0, infinity for the longest axis.
        weights: a factor for each axis, 1 by default.
    """
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"a grid has one size >= 1 for each axis, not {list(sizes)}")
    if weights is not None and len(weights) != len(sizes):
        raise ConfigError(f"{len(weights)} weights for {len(sizes)} axes")
    if p < 0:
        raise ConfigError(f"a distance has p >= 0, not {p}")
    axes = [torch.arange(size) * weight for size, weight in zip(sizes, weights or [1.0] * len(sizes), strict=True)]
    total = torch.zeros(1)
    for points in torch.meshgrid(*axes, indexing="ij"):
        flat = points.flatten()
        apart = (flat[:, None] - flat[None, :]).abs()
        if math.isinf(p):
            total = torch.maximum(total, apart)
        else:
            total = total + ((apart != 0).float() if p == 0 else apart.pow(p))
    return total if p in (0, 1) or math.isinf(p) else total.pow(1 / p)


def gaussian_weights(sizes: Sequence[int], sigma: float = 1.0) -> Tensor:
    """exp(-d^2 / (2 sigma^2)) for the distance d between every two points of a grid.

    Shapes: -> float32 `[S, S]`.
    """
    if sigma <= 0:
        raise ConfigError(f"the width of a Gaussian is > 0, not {sigma}")
    return torch.exp(-0.5 / sigma**2 * grid_distances(sizes).square())


def sample_pairs(weights: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Exactly `count` places drawn without replacement, each draw in proportion to the weights that are left.

    An exponential variable of rate w is the first of many with probability in proportion to w, so the `count` earliest
    are such a draw, whatever the number of places.

    Shapes: weights, any shape, >= 0 -> bool of the same shape.

    Args:
        weights: relative probabilities; places of weight 0 are never drawn.
        count: how many places.
        generator: torch's own by default.
    """
    possible = int((weights > 0).sum())
    if not bool((weights >= 0).all()) or not bool(weights.isfinite().all()):
        raise ConfigError("probabilities are finite and >= 0")
    if not 0 <= count <= possible:
        raise ConfigError(f"{count} places cannot be drawn: {possible} have a probability above 0")
    if count == 0:
        return torch.zeros_like(weights, dtype=torch.bool)
    # Float64: equal arrival times, which would make the count inexact, do not occur.
    arrival = torch.empty(weights.shape, dtype=torch.float64, device=weights.device)
    arrival = arrival.exponential_(generator=generator).div_(weights)
    last = arrival.flatten().kthvalue(count).values
    return arrival <= last


def block_layout(pattern: Tensor, block: int) -> Tensor:
    """Which blocks of a pattern hold an entry that is not zero.

    Shapes: pattern `[..., Sq, Sk]`, lengths that are multiples of `block` -> bool `[..., Sq / block, Sk / block]`.
    """
    if pattern.dim() < 2 or block < 1:
        raise ShapeError(f"a pattern [..., Sq, Sk] and a block >= 1 are needed, not {list(pattern.shape)} and {block}")
    rows, columns = pattern.shape[-2:]
    if rows % block or columns % block:
        padded = [-(-size // block) * block for size in (rows, columns)]
        raise ShapeError(
            f"blocks of {block} do not divide a pattern of {rows} x {columns}; pad it with zeros to "
            f"{padded[0]} x {padded[1]}"
        )
    tiles = (pattern != 0).view(*pattern.shape[:-2], rows // block, block, columns // block, block)
    return tiles.any(-1).any(-2)


def expand_layout(layout: Tensor, block: int) -> Tensor:
    """Each entry of a layout as a block of equal entries.

    Shapes: layout `[..., nq, nk]` -> `[..., nq * block, nk * block]`.
    """
    return layout.repeat_interleave(block, -2).repeat_interleave(block, -1)


def pad_to_blocks(pattern: Tensor, block: int) -> Tensor:
    """Zeros (nothing attended) after the end, up to whole blocks.

    Shapes: pattern `[..., Sq, Sk]` -> `[..., ceil(Sq / block) * block, ceil(Sk / block) * block]`.
    """
    rows, columns = pattern.shape[-2:]
    return functional.pad(pattern, (0, -columns % block, 0, -rows % block))
