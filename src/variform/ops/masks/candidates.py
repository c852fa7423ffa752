"""Which tiles of a mask can hold a pair, told from its form: what is left out need not be looked at."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from variform.ops.masks.base import And, Mask, Or
from variform.ops.masks.positional import Coarse, Global
from variform.ops.masks.view import grid_view, point_view
from variform.ops.patterns import block_layout as pool
from variform.ops.patterns import pad_to_blocks

__all__ = ["band_layout", "candidates", "is_fixed", "visited_pairs"]

_ELEMENTS = 1 << 23
"""Pairs that are looked at in one go."""


def is_fixed(mask: Mask) -> bool:
    """Whether the mask is one and the same for all rows and heads, and needs no data of a call."""
    return not mask.has_tensors and not mask.needs_segments


def candidates(mask: Mask, q_len: int, k_len: int, block: int) -> Tensor:
    """Bool `[ceil(Lq/block), ceil(Lk/block)]`: blocks that may hold a pair, at positions 0..L-1; False is certain."""
    shape = -(-q_len // block), -(-k_len // block)
    band = mask.band()
    if band is not None:
        return band_layout(q_len, k_len, block, *band)
    if isinstance(mask, And | Or):
        found = [candidates(part, q_len, k_len, block) for part in mask.parts]
        return torch.stack(found).all(0) if isinstance(mask, And) else torch.stack(found).any(0)
    if isinstance(mask, Global):
        hits = torch.tensor(mask.indices, dtype=torch.int64) // block
        rows, columns = (torch.isin(torch.arange(size), hits) for size in shape)
        return rows[:, None] | columns
    if isinstance(mask, Coarse) and block % mask.block == 0:
        lengths = -(-q_len // mask.block), -(-k_len // mask.block)
        ratio = block // mask.block
        return pool(pad_to_blocks(candidates(mask.part, *lengths, 1), ratio), ratio)
    if block == 1:
        return mask._visit(grid_view(torch.arange(q_len), torch.arange(k_len))).expand(q_len, k_len).clone()
    return torch.ones(shape, dtype=torch.bool)


def band_layout(q_len: int, k_len: int, block: int, back: int | None, ahead: int | None) -> Tensor:
    """A block is visited when the distances that occur in it overlap the band."""
    q_first = torch.arange(0, q_len, block)[:, None]
    k_first = torch.arange(0, k_len, block)[None, :]
    q_last, k_last = (q_first + block - 1).clamp(max=q_len - 1), (k_first + block - 1).clamp(max=k_len - 1)
    near = q_last - k_first >= (-k_len if ahead is None else -ahead)
    far = q_first - k_last <= (q_len if back is None else back)
    return near & far


def visited_pairs(mask: Mask, tiles: Tensor, q_len: int, k_len: int, block: int) -> Iterator[Tensor]:
    """The pairs within the listed tiles of a fixed mask: bool `[n, block, block]`, some tiles at a time.

    Shapes: tiles `[T, 2]`, block row and column.
    """
    inside, zero = torch.arange(block), torch.zeros((), dtype=torch.int64)
    for some in torch.split(tiles, max(1, _ELEMENTS // block**2)):
        q = (some[:, 0, None] * block + inside)[:, :, None]
        k = (some[:, 1, None] * block + inside)[:, None, :]
        yield mask._visit(point_view(zero, zero, q, k)) & (q < q_len) & (k < k_len)
