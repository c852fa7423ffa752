"""Operations on sparse tensors of attention scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variform.dialects.xformers.components.attention._sputnik_sparse import SparseCS
from variform.dialects.xformers.sparse import BlockSparseTensor, SparseCSRTensor


def masked_matmul(a: Tensor, b: Tensor, mask: Any = None) -> Any:
    """a @ b where a mask allows: sparse for sparse masks, -inf elsewhere for dense ones.

    Shapes:
        a: [..., M, K], b: [..., K, N], mask: bool [..., M, N], or a sparse tensor of that shape

    Args:
        a: left factor.
        b: right factor.
        mask: True = computed; the places of a sparse tensor; None computes all.
    """
    if mask is None:
        return a @ b
    if isinstance(mask, (SparseCS, SparseCSRTensor, BlockSparseTensor)):
        return mask.masked_matmul(a, b)
    if mask.dtype != torch.bool:
        return (a @ b) + mask
    return (a @ b).masked_fill(~mask, -torch.inf)


__all__ = ["masked_matmul"]
