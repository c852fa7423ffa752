"""Leaving tokens out at random."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_tokens(x: Tensor, valid: Tensor | None, rate: float) -> tuple[Tensor, Tensor | None]:
    """Tokens drawn for each row, in a random order; real ones before padding, and of each row the same part.

    Shapes:
        x: [B, L, dim], valid: [B, L] bool -> [B, N, dim], [B, N] or None; N = max(1, floor(L (1 - rate)))

    Args:
        x: the tokens.
        valid: False at padding; None for none.
        rate: the part that is left out. Of n real tokens ceil(n (1 - rate)) are kept.
    """
    batch, length = x.shape[:2]
    kept = max(1, int((1.0 - rate) * length))
    order = torch.rand(batch, length, device=x.device)
    if valid is not None:
        order = order.masked_fill(~valid, -1.0)
    places = order.topk(kept, dim=1).indices
    rows = torch.arange(batch, device=x.device).unsqueeze(1)
    if valid is None:
        return x[rows, places], None
    counts = (valid.sum(1) * (1.0 - rate)).ceil()
    seen = torch.arange(kept, device=x.device) < counts.unsqueeze(1)
    return x[rows, places], valid[rows, places] & seen
