"""Calling an attention that a user wrote: the tensors and masks in the form its flags ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variform.dialects.xformers.components.attention._sputnik_sparse import SparseCS
from variform.dialects.xformers.components.attention.attention_mask import AttentionMask
from variform.dialects.xformers.components.attention.base import Attention
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes
from variform.dialects.xformers.errors import CallError
from variform.ops.masks import Mask


def call_foreign(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    att_mask: AttMask | None,
    padding: Tensor | None,
    sizes: Sizes,
) -> Tensor:
    """Call an attention that is no native part; what it does not support is refused.

    Shapes:
        q, k, v: [B, heads, S, D], or [B, S, dim_model] for attentions that own their heads; the result likewise

    Raises:
        CallError: a mask or a length that its flags exclude.
    """
    _refuse(attention, att_mask, sizes)
    owns_heads = attention.requires_skip_multi_head
    masks = _masks(attention, att_mask, padding, sizes, 1 if owns_heads else sizes.heads)
    if owns_heads or attention.requires_head_dimension:
        return attention(q, k, v, **masks)  # type: ignore[no-any-return]
    y = attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), **masks)
    return y.view(sizes.batch, sizes.heads, *y.shape[1:])  # type: ignore[no-any-return]


def _refuse(attention: Attention, att_mask: AttMask | None, sizes: Sizes) -> None:
    name = type(attention).__name__
    if att_mask is not None and not attention.supports_attention_mask:
        raise CallError(f"the attention {name} does not support attention masks")
    if sizes.queries != sizes.keys:
        lengths = f"{sizes.queries} queries and {sizes.keys} keys"
        if attention.requires_same_k_q_dimensions:
            raise CallError(f"the attention {name} needs as many queries as keys, not {lengths}")
        if getattr(attention, "causal", False):
            raise CallError(f"causality between sequences of different lengths is not defined: {lengths}")


def _masks(
    attention: Attention, att_mask: AttMask | None, padding: Tensor | None, sizes: Sizes, heads: int
) -> dict[str, Any]:
    """The mask arguments of the call; padding goes into the attention mask where it is not taken by itself."""
    if isinstance(att_mask, SparseCS):
        att_mask = att_mask.allowed
    if isinstance(att_mask, Mask):
        q_pos, k_pos = torch.arange(sizes.queries), torch.arange(sizes.keys)
        att_mask = att_mask.dense(q_pos, k_pos)
    masks: dict[str, Any] = {}
    if padding is not None and attention.supports_key_padding_mask:
        masks["key_padding_mask"] = padding
    elif padding is not None:
        if not attention.supports_attention_mask:
            raise CallError(f"the attention {type(attention).__name__} supports no mask, key padding included")
        att_mask = _merged(att_mask, padding, sizes)
    if att_mask is not None:
        masks["att_mask"] = att_mask if attention.requires_head_dimension else _folded(att_mask, sizes.batch, heads)
    return masks


def _merged(att_mask: Tensor | AttentionMask | None, padding: Tensor, sizes: Sizes) -> Tensor | AttentionMask:
    """Forbid the padded keys in an attention mask of [Sq, Sk] or [B, Sq, Sk]."""
    wide = padding[:, None, :].expand(-1, sizes.queries, -1)
    if att_mask is None:
        return wide
    values = att_mask.values if isinstance(att_mask, AttentionMask) else att_mask
    if values.dim() > 3 or (values.dim() == 3 and values.shape[0] not in (1, sizes.batch)):
        raise CallError("a mask per head does not combine with key padding for an attention that takes one mask alone")
    if values.dtype == torch.bool:
        return values & wide
    merged = values.expand_as(wide).masked_fill(~wide, -torch.inf)
    return AttentionMask(merged) if isinstance(att_mask, AttentionMask) else merged


def _folded(att_mask: Tensor | AttentionMask, batch: int, heads: int) -> Tensor | AttentionMask:
    """One mask a row, repeated for the row's heads in the order in which heads are folded into the batch."""
    if isinstance(att_mask, AttentionMask):
        folded = _folded(att_mask.values, batch, heads)
        assert isinstance(folded, Tensor)
        return AttentionMask(folded, att_mask.is_causal)
    if att_mask.dim() == 4:
        return att_mask.expand(batch, heads, -1, -1).flatten(0, 1)
    if att_mask.dim() == 3 and att_mask.shape[0] == batch > 1:
        return att_mask.repeat_interleave(heads, 0)
    return att_mask
