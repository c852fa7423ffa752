"""Visited pairs and visited blocks of a mask: closed formulas for bands and layouts, counting in strips otherwise."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils import _pytree as pytree

from variform.ops.masks.base import Mask
from variform.ops.masks.candidates import band_layout, candidates, is_fixed, visited_pairs
from variform.ops.masks.view import grid_view

__all__ = ["band_pairs", "block_layout", "count_pairs", "real_tensors"]

_STRIP_ELEMENTS = 1 << 24
"""Elements of a dense strip that counting holds at once (16 MiB of bool)."""
_LONG, _TILE, _FEW = 2048, 128, 0.5
"""Lengths from which on empty tiles are passed over, the side of a tile, and the largest share for which it pays."""


def count_pairs(mask: Mask, q_len: int, k_len: int, offset: int = 0) -> int | float:
    """Visited pairs for queries at positions offset..offset+q_len-1 and keys at 0..k_len-1.

    The mean over batch rows and heads where they differ. Tensor-free masks are counted once and remembered.
    """
    band = mask.band()
    if band is not None:
        return band_pairs(q_len, k_len, band[0], band[1], offset)
    if mask.has_tensors or mask.needs_segments:
        return _counted(mask, q_len, k_len, offset)
    return _counted_once(mask, q_len, k_len, offset)


def band_pairs(q_len: int, k_len: int, back: int | None, ahead: int | None, offset: int = 0) -> int:
    """Pairs with -ahead <= q - k <= back, q in [offset, offset + q_len), k in [0, k_len); None is no limit."""
    upper = _below_diagonal(q_len, k_len, k_len if ahead is None else ahead + offset)
    lower = 0 if back is None else _below_diagonal(q_len, k_len, offset - back - 1)
    return max(0, upper - lower)


def _below_diagonal(q_len: int, k_len: int, shift: int) -> int:
    """Pairs with k <= q + shift: the sum over rows of clamp(q + shift + 1, 0, k_len)."""
    first = max(0, -shift)  # rows before see no key
    full = min(max(k_len - shift - 1, first), q_len)  # rows from here on see every key
    growing = max(0, full - first)
    return growing * (first + full - 1 + 2 * (shift + 1)) // 2 + max(0, q_len - max(full, first)) * k_len


@functools.lru_cache(maxsize=256)
def _counted_once(mask: Mask, q_len: int, k_len: int, offset: int) -> int | float:
    return _counted(mask, q_len, k_len, offset)


def _counted(mask: Mask, q_len: int, k_len: int, offset: int) -> int | float:
    if offset == 0 and min(q_len, k_len) >= _LONG and is_fixed(mask):
        with real_tensors():
            tiles = candidates(mask, q_len, k_len, _TILE).nonzero()
            if len(tiles) <= _FEW * (q_len / _TILE) * (k_len / _TILE):
                return sum(int(seen.sum()) for seen in visited_pairs(mask, tiles, q_len, k_len, _TILE))
    rows = max(1, _STRIP_ELEMENTS // max(1, k_len))
    total: int | float = 0
    with real_tensors():
        for strip in _strips(mask, q_len, k_len, rows, offset):
            copies = strip.numel() // max(1, strip.shape[-2] * strip.shape[-1])
            visited = int(strip.sum())
            total += visited if strip.dim() == 2 else visited / copies
    return total


def block_layout(mask: Mask, q_len: int, k_len: int, block: int) -> Tensor:
    """Bool `[ceil(Lq/block), ceil(Lk/block)]` or `[H, ...]`: blocks in which some batch row visits a pair."""
    q_blocks, k_blocks = -(-q_len // block), -(-k_len // block)
    band = mask.band()
    if band is not None:
        return band_layout(q_len, k_len, block, band[0], band[1])
    if is_fixed(mask) and min(q_len, k_len) >= _LONG:
        layout = candidates(mask, q_len, k_len, block)
        tiles = layout.nonzero()
        if len(tiles) <= _FEW * layout.numel():
            exact = [seen.any(-1).any(-1) for seen in visited_pairs(mask, tiles, q_len, k_len, block)]
            layout[tiles[:, 0], tiles[:, 1]] = torch.cat(exact) if exact else False
            return layout
    strips = []
    per_strip = block * max(1, _STRIP_ELEMENTS // max(1, k_len * block))
    for strip in _strips(mask, q_len, k_len, per_strip, 0):
        rows = strip.shape[-2]
        seen = strip.any(0) if strip.dim() == 4 else strip[None]
        padded = torch.nn.functional.pad(seen, (0, k_blocks * block - k_len, 0, -(-rows // block) * block - rows))
        tiles = padded.view(padded.shape[0], -1, block, k_blocks, block)
        strips.append(tiles.any(-1).any(-2))
    layout = torch.cat(strips, dim=1) if strips else torch.zeros(1, q_blocks, k_blocks, dtype=torch.bool)
    return layout[0] if layout.shape[0] == 1 else layout


def _strips(mask: Mask, q_len: int, k_len: int, rows: int, offset: int) -> Iterator[Tensor]:
    """Dense rows of the mask, `rows` at a time: bool `[n, Lk]` or `[B, H, n, Lk]`."""
    mask.check(None, None, q_len, k_len)
    device = _device(mask)
    k_pos = torch.arange(k_len, device=device)
    for start in range(0, q_len, rows):
        index = torch.arange(start, min(start + rows, q_len), device=device)
        view = replace(grid_view(index + offset, k_pos), q_index=index[:, None])
        strip = mask._visit(view)
        yield strip.expand(*strip.shape[:-2], len(index), k_len)


def _device(mask: Mask) -> torch.device | None:
    return next((leaf.device for leaf in pytree.tree_leaves(mask) if isinstance(leaf, Tensor)), None)


@contextmanager
def real_tensors() -> Iterator[None]:
    """For what is computed once and kept: real numbers under fake tensors, and tensors that autograd may save.

    A tensor made in inference mode and remembered would make a later training step fail.
    """
    with torch.inference_mode(False), unset_fake_temporarily():
        yield
