"""Calling an attention that a user wrote: the tensors and masks in the form its flags ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variform.dialects.xformers.components.attention.base import Attention
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes, read_att_mask
from variform.dialects.xformers.errors import CallError
from variform.ops.scores import DenseBias


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
    masks: dict[str, Any] = {}
    if padding is not None and attention.supports_key_padding_mask:
        masks["key_padding_mask"], padding = padding, None
    elif padding is not None and not attention.supports_attention_mask:
        raise CallError(f"the attention {type(attention).__name__} supports no mask, key padding included")
    if att_mask is not None or padding is not None:
        merged = _merged(att_mask, padding, sizes)
        masks["att_mask"] = merged if attention.requires_head_dimension else _folded(merged, sizes.batch, heads)
    return masks


def _merged(att_mask: AttMask | None, padding: Tensor | None, sizes: Sizes) -> Tensor:
    """One mask of both, [Sq, Sk] or [B|1, heads|1, Sq, Sk]: bool, True = may attend, or floats for the scores."""
    allowed, scores = read_att_mask(att_mask, sizes)
    full = scores[0].tensor if scores and isinstance(scores[0], DenseBias) else None
    if allowed is not None:
        device = None if padding is None else padding.device
        full = allowed.dense(*(torch.arange(count, device=device) for count in (sizes.queries, sizes.keys)))
    if padding is None:
        assert full is not None
        return full
    real = padding[:, None, None, :]
    if full is None:
        return real.expand(-1, -1, sizes.queries, -1)
    return full & real if full.dtype == torch.bool else full.masked_fill(~real, -torch.inf)


def _folded(full: Tensor, batch: int, heads: int) -> Tensor:
    """One mask a row, repeated for the row's heads in the order in which heads are folded into the batch."""
    if full.dim() == 2:
        return full
    if full.shape[1] not in (1, heads):
        raise CallError(f"a mask of {full.shape[1]} heads, for an attention that is not told of heads")
    if full.shape[0] == 1 and full.shape[1] == 1:
        return full[:, 0]
    return full.expand(batch, heads, -1, -1).flatten(0, 1)
