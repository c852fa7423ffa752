"""Softmax attention with padded keys in one call of torch's, for attentions that need it on the way."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["exact_attention"]


def exact_attention(
    q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(q k^T * scale) v; a query that sees no key gives zeros, and padded keys may hold anything.

    Shapes:
        q: `[B, H, Lq, D]`, k: `[B, Hk, Lk, D]`, v: `[B, Hk, Lk, Dv]`; real: bool `[B, Lk]`, which keys there are
    """
    groups = q.shape[1] // k.shape[1]
    if real is not None:
        padding = ~real[:, None, :, None]
        k, v = k.masked_fill(padding, 0), v.masked_fill(padding, 0)
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    seen = None if real is None else real[:, None, None, :]
    if causal:
        past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        seen = past if seen is None else seen & past
    if real is None or seen is None:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    some = seen.any(-1, keepdim=True)
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen | ~some, scale=scale)
    return y.masked_fill(~some, 0)
