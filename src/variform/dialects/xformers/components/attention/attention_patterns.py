"""Attention patterns as tensors, under upstream's names: bool [S, S], True = may attend.

The same patterns as masks that any model takes, for any length and combinable, are in `variform.ops.masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from variform.dialects.xformers.components.attention.sparsity_config import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    FixedSparsityConfig,
    VariableSparsityConfig,
)
from variform.dialects.xformers.errors import CallError, ConfigAssertionError
from variform.errors import ConfigError, ShapeError
from variform.ops import patterns
from variform.ops.masks import Axial, Causal, Dilated, Mask, Near, ShiftedWindows, Window
from variform.ops.scores import alibi_slopes


def local_nd_distance(*sizes: int, p: float = 2.0, weights: Sequence[float] | None = None) -> Tensor:
    """The p-distance between every two points of a grid, float [S, S]; p = 0 counts the axes on which they differ."""
    return _asserted(lambda: patterns.grid_distances(sizes, p, weights))


def local_nd_gaussian_distribution(*sizes: int, sigma: float = 1) -> Tensor:
    """exp(-d^2 / (2 sigma^2)) for the distance d between every two points of a grid, float [S, S]."""
    return _asserted(lambda: patterns.gaussian_weights(sizes, sigma))


def local_nd_pattern(*sizes: int, distance: float, p: float = 2.0) -> Tensor:
    """Points at a p-distance below `distance`."""
    return _pattern(lambda: Near(sizes, distance, p), sizes)


def axial_nd_pattern(*sizes: int) -> Tensor:
    """Points that differ on one axis at most."""
    return _pattern(lambda: Axial(sizes), sizes)


def random_pattern_from_probability_matrix(
    dist_matrix: Tensor, nnz: int, generator: torch.Generator | None = None
) -> Tensor:
    """Exactly `nnz` entries, drawn without replacement in proportion to a matrix of any size."""
    return _asserted(lambda: patterns.sample_pairs(dist_matrix, nnz, generator))


def global_token_pattern(attention_query_mask: Tensor) -> Tensor:
    """The rows and columns of the tokens that are True in a bool [S]."""
    if attention_query_mask.dim() != 1 or attention_query_mask.dtype != torch.bool:
        found = f"{attention_query_mask.dtype} {list(attention_query_mask.shape)}"
        raise CallError(f"attention_query_mask: bool [S], True = a global token, expected; got {found}")
    return attention_query_mask[:, None] | attention_query_mask[None, :]


def random_pattern(attn_size: int, sparsity: float, generator: torch.Generator | None = None) -> Tensor:
    """Each entry with probability 1 - sparsity."""
    if not 0 < sparsity < 1:
        raise CallError(f"sparsity: a share between 0 and 1, both excluded, expected; got {sparsity}")
    return torch.rand(attn_size, attn_size, generator=generator) > sparsity


def local_1d_pattern(attn_size: int, window_size: int) -> Tensor:
    """A band of `window_size` positions around each, an odd number."""
    if window_size % 2 == 0:
        near = f"nearest: {window_size - 1} or {window_size + 1}"
        raise CallError(f"window_size: an odd number (a position and two wings) expected; got {window_size}; {near}")
    return _pattern(lambda: Window(window_size // 2, window_size // 2), (attn_size,))


def causal_1d_pattern(attn_size: int) -> Tensor:
    """Positions at and before each."""
    return _pattern(Causal, (attn_size,))


def horizontal_axial_2d_distance(H: int, W: int, p: float = 2.0) -> Tensor:
    """How many rows apart the pixels of an image are, float [H * W, H * W]."""
    return local_nd_distance(H, W, p=p, weights=(1, 0))


def vertical_axial_2d_distance(H: int, W: int, p: float = 2.0) -> Tensor:
    """How many columns apart the pixels of an image are, float [H * W, H * W]."""
    return local_nd_distance(H, W, p=p, weights=(0, 1))


def local_2d_distance(H: int, W: int, p: float = 2.0) -> Tensor:
    """The p-distance between the pixels of an image, float [H * W, H * W]."""
    return local_nd_distance(H, W, p=p)


def local_2d_gausian_distribution(H: int, W: int, sigma: float = 1) -> Tensor:
    """exp(-d^2 / (2 sigma^2)) for the distance d between the pixels of an image, float [H * W, H * W]."""
    return local_nd_gaussian_distribution(H, W, sigma=sigma)


def local_2d_pattern(H: int, W: int, distance: float, p: float = 2.0) -> Tensor:
    """Pixels at a p-distance below `distance`."""
    return local_nd_pattern(H, W, distance=distance, p=p)


def axial_2d_pattern(H: int, W: int) -> Tensor:
    """Pixels of one row or one column."""
    return axial_nd_pattern(H, W)


def swin_attention_pattern(H: int, W: int, window_size: int, shift_size: int = 0) -> Tensor:
    """Pixels of one window (Swin, Liu et al. 2021, arXiv:2103.14030), the tiling moved by `shift_size`."""
    return _pattern(lambda: ShiftedWindows((H, W), window_size, shift_size), (H, W))


def dilated_2d_pattern(H: int, W: int, k: int = 2) -> Tensor:
    """Pixels a multiple of `k` rows and columns away."""
    return _pattern(lambda: Dilated((H, W), k), (H, W))


def block_sparsify_tensor(x: Tensor, mask: Tensor, block_size: int) -> Tensor:
    """The blocks of a tensor that a layout lists, in the order of the layout.

    Shapes:
        x: [B, H, S, S'], mask: [H, S / b, S' / b] -> [B, blocks, b, b]
    """
    wanted = (mask.shape[-3] if mask.dim() == 3 else None, *(size * block_size for size in mask.shape[-2:]))
    if x.dim() != 4 or tuple(x.shape[1:]) != wanted:
        raise CallError(f"blocks of {block_size} under a layout {list(mask.shape)} do not make up {list(x.shape)}")
    batch, heads, rows, columns = x.shape[0], *mask.shape
    tiles = x.reshape(batch, heads, rows, block_size, columns, block_size).transpose(3, 4)
    return tiles[:, mask.bool()]


def pattern_to_layout(mask: Tensor, block_size: int) -> Tensor:
    """Which blocks hold an entry that is not zero: the layout that a block-sparse attention takes.

    Any block size; lengths that it does not divide are refused, as a mask padded in silence would fit no sequence.

    Shapes:
        mask: [S, S'] or [H, S, S'] -> long [S / b, S' / b] or [H, S / b, S' / b]
    """
    if mask.dim() not in (2, 3):
        raise CallError(f"a pattern [S, S] or [heads, S, S] expected, not {list(mask.shape)}")
    return _asserted(lambda: patterns.block_layout(mask, block_size)).long()


def layout_to_pattern(layout: Tensor, block_size: int) -> Tensor:
    """Each entry of a layout as a block of equal entries.

    Shapes:
        layout: [H, S / b, S' / b] or [S / b, S' / b] -> float [H, S, S'] or [S, S']
    """
    return patterns.expand_layout(layout, block_size).to(torch.get_default_dtype())


def alibi_pattern(threshold: float, mask_shape: Sequence[int]) -> Tensor:
    """Pairs that ALiBi (Press et al. 2021, arXiv:2108.12409) lowers by less than `threshold`: slope_h |i - j| < t.

    Args:
        threshold: the first lowering of a score that is too much.
        mask_shape: [H, S, S'].

    Shapes:
        -> bool [H, S, S'].
    """
    if len(mask_shape) != 3:
        raise CallError(f"mask_shape: [heads, S, S] expected, not {list(mask_shape)}")
    heads, rows, columns = mask_shape
    apart = (torch.arange(rows)[:, None] - torch.arange(columns)).abs()
    return alibi_slopes(heads)[:, None, None] * apart < threshold


def quick_fixed_layout(num_heads: int, block_size: int, seq_len: int) -> Tensor:
    """The layout of `FixedSparsityConfig` with its defaults, long [H, S / b, S / b]."""
    return FixedSparsityConfig(num_heads=num_heads, block_size=block_size).make_layout(seq_len)


def quick_variable_layout(num_heads: int, block_size: int, seq_len: int) -> Tensor:
    """The layout of `VariableSparsityConfig` with its defaults, long [H, S / b, S / b]."""
    return VariableSparsityConfig(num_heads=num_heads, block_size=block_size).make_layout(seq_len)


def quick_bigbird_layout(num_heads: int, block_size: int, seq_len: int) -> Tensor:
    """The layout of `BigBirdSparsityConfig` with its defaults, long [H, S / b, S / b]."""
    return BigBirdSparsityConfig(num_heads=num_heads, block_size=block_size).make_layout(seq_len)


def quick_bslongformer_layout(num_heads: int, block_size: int, seq_len: int) -> Tensor:
    """The layout of `BSLongformerSparsityConfig` with its defaults, long [H, S / b, S / b]."""
    return BSLongformerSparsityConfig(num_heads=num_heads, block_size=block_size).make_layout(seq_len)


def _pattern(make: Callable[[], Mask], sizes: Sequence[int]) -> Tensor:
    """A mask over all points of a grid."""
    count = 1
    for size in sizes:
        count *= size
    positions = torch.arange(count)
    return _asserted(lambda: make().dense(positions, positions))


def _asserted(run: Callable[[], Tensor]) -> Tensor:
    """Errors of the library as what upstream raised: they are `AssertionError`s as well."""
    try:
        return run()
    except ShapeError as error:
        raise CallError(str(error)) from None
    except ConfigError as error:
        raise ConfigAssertionError(error.problems) from None
