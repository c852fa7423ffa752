"""Upstream's helpers for masks and inverses of attentions."""

from __future__ import annotations

import torch
from torch import Tensor

from variform.dialects.xformers.errors import CallError
from variform.ops.nystrom import improved

__all__ = ["bool_mask_to_additive", "iterative_pinv", "maybe_merge_masks", "reshape_key_padding_mask"]


def iterative_pinv(softmax_mat: Tensor, n_iter: int = 6, pinverse_original_init: bool = False) -> Tensor:
    """The Moore-Penrose inverse of matrices with entries >= 0 and row sums of 1, by the method of Razavi et al. 2014.

    Shapes:
        softmax_mat: [..., n, m] -> [..., m, n]

    Args:
        softmax_mat: the matrices.
        n_iter: how often the inverse is improved.
        pinverse_original_init: begin all of them with the smallest factor, not each with its own.
    """
    largest = softmax_mat.sum(-2).amax(-1)
    if pinverse_original_init:
        largest = largest.max()
    return improved(softmax_mat, softmax_mat.transpose(-1, -2) / largest[..., None, None], n_iter)


def reshape_key_padding_mask(key_padding_mask: Tensor, batched_dim: int) -> Tensor:
    """A mask over keys, repeated for the heads that are folded into the batch: [B, S] -> [B * heads, 1, S].

    Raises:
        CallError: not two dimensions, or rows that do not divide `batched_dim`.
    """
    if key_padding_mask.dim() != 2 or batched_dim % key_padding_mask.shape[0]:
        raise CallError(f"key_padding_mask {list(key_padding_mask.shape)} does not fit {batched_dim} rows")
    heads = batched_dim // key_padding_mask.shape[0]
    return key_padding_mask.unsqueeze(1).repeat_interleave(heads, 0)


def maybe_merge_masks(
    att_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    batch_size: int,
    src_len: int,
    num_heads: int,
    tgt_len: int | None = None,
) -> Tensor | None:
    """One mask of both, for attentions with folded heads: True = may attend; floats are added to scores.

    Shapes:
        att_mask: [T, S] or [B * heads, T, S]; key_padding_mask: bool [B, S] -> [B * heads, T, S]

    Raises:
        CallError: padding of another shape or type.
    """
    if key_padding_mask is None:
        return att_mask
    if key_padding_mask.shape != (batch_size, src_len) or key_padding_mask.dtype != torch.bool:
        found = f"{key_padding_mask.dtype} {list(key_padding_mask.shape)}"
        raise CallError(f"key_padding_mask is bool [{batch_size}, {src_len}], not {found}")
    real = reshape_key_padding_mask(key_padding_mask, batch_size * num_heads)
    if att_mask is None:
        return real.expand(-1, tgt_len or src_len, -1)
    if att_mask.dtype == torch.bool:
        return att_mask & real
    return torch.where(real, att_mask, -torch.inf)


def bool_mask_to_additive(mask: Tensor, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """0 where the mask is True (may attend), -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)
