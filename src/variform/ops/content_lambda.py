"""The content lambda: values weighted by a softmax of the keys over the positions, feature by feature."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from variform.ops.shapes import unflatten

__all__ = ["content_lambda"]

CHUNK = 16
"""Positions whose pairs are made one by one when causal; older ones come as sums."""


def content_lambda(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, causal: bool) -> Tensor:
    """y_n = sum_d q_nd sum_m softmax_m(k_md) v_m, over m <= n when causal.

    Shapes:
        q, k: `[B, H, L, D]`, v: `[B, H, L, Dv]`; real: bool `[B, L]`, which tokens there are, those first
    """
    if causal:  # what is not real comes last, where no real token looks
        return _causal(q, k, v)
    if real is None:
        return q @ (k.softmax(2).transpose(-1, -2) @ v)
    padding = ~real[:, None, :, None]
    weights = k.masked_fill(padding, torch.finfo(k.dtype).min).softmax(2).masked_fill(padding, 0)
    return q @ (weights.transpose(-1, -2) @ v)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By chunks. Every exponent is at most 0, however large the keys are: r_m is the log of the normaliser up to m.

    sum_m exp(k_m - r_n) v_m is made of the pairs of n's own chunk, and of exp(r_end - r_n) times what the chunks
    before come to in terms of their last r_end.
    """
    dtype, length = q.dtype, q.shape[2]
    wide = torch.float32 if dtype.itemsize < 4 else dtype
    q, k, v = (_chunks(t.to(wide)) for t in (q, k, v))
    total = unflatten(k.flatten(2, 3).logcumsumexp(2), 2, k.shape[2:4])
    ends = total[:, :, :, -1]
    # A causal softmax among the chunks: weights of the sums of each chunk for those that come after it.
    before = torch.cat((total[:, :, :1, 0], ends[:, :, :-1]), 2)
    sums = (k - ends.unsqueeze(3)).exp().transpose(-1, -2) @ v
    chunks = torch.arange(k.shape[2], device=k.device)
    earlier = (chunks < chunks[:, None])[..., None]
    weights = (ends.unsqueeze(2) - before.unsqueeze(3)).masked_fill(~earlier, -torch.inf).exp()
    past = torch.einsum("bhtsd,bhsdv->bhtdv", weights, sums)
    old = (q * (before.unsqueeze(3) - total).exp()) @ past
    steps = torch.arange(k.shape[3], device=k.device)
    ahead = (steps > steps[:, None])[..., None]
    pairs = (k.unsqueeze(3) - total.unsqueeze(4)).masked_fill(ahead, -torch.inf).exp()
    own = (pairs @ q.unsqueeze(-1))[..., 0] @ v
    return (old + own).flatten(2, 3)[:, :, :length].to(dtype)


def _chunks(x: Tensor) -> Tensor:
    """`[B, H, L, D]` -> `[B, H, n, CHUNK, D]`, zeros at the end."""
    count = (x.shape[2] + CHUNK - 1) // CHUNK
    return unflatten(functional.pad(x, (0, 0, 0, count * CHUNK - x.shape[2])), 2, (count, CHUNK))
