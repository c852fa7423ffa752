"""Sums of two tensors by a share."""

from __future__ import annotations

import torch
from torch import Tensor


def blend(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """(1 - share) start + share end, in the widest dtype of the three.

    `torch.lerp` takes tensors of one dtype; under autocast some come out of a map narrow and others are as they were.

    Shapes: that broadcast.
    """
    dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), share.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), share.to(dtype))
