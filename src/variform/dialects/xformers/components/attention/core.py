"""The pieces of scaled dot-product attention as functions, for code that puts them together itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.xformers.components.attention._sputnik_sparse import SparseCS
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes, read_att_mask
from variform.dialects.xformers.errors import CallError
from variform.ops.attention import Call, attention, reference_weights


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    att_mask: AttMask | None = None,
    dropout: nn.Module | None = None,
    block_size: int = 128,
) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V by the library's fastest backend.

    Shapes:
        q: [N, Sq, D], k: [N, Sk, D], v: [N, Sk, Dv] -> [N, Sq, Dv]

    Args:
        q: queries.
        k: keys.
        v: values.
        att_mask: what may attend to what, as for every attention; see `read_att_mask`.
        dropout: a `torch.nn.Dropout` for the weights, or a module that is applied to the written-out weights.
        block_size: upstream's tile length; the library chooses its own.
    """
    if dropout is None or type(dropout) is nn.Dropout:
        rate = dropout.p if dropout is not None and dropout.training else 0.0
        return attention(_call(q, k, v, att_mask, rate))[:, 0]
    return bmm(dropout(scaled_query_key_softmax(q, k, att_mask)), v)


def scaled_query_key_softmax(q: Tensor, k: Tensor, att_mask: AttMask | None = None) -> Any:
    """softmax(Q K^T / sqrt(D)): [N, Sq, Sk], or a `SparseCS` for a mask that is one. Rows without keys are zeros."""
    if isinstance(att_mask, SparseCS):
        return att_mask.masked_matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1)).softmax()
    return reference_weights(_call(q, k, k, att_mask, 0.0))[:, 0]


def bmm(a: Any, b: Tensor) -> Tensor:
    """Attention weights, dense or sparse, times values."""
    return a.spmm(b) if isinstance(a, SparseCS) else a @ b


def _call(q: Tensor, k: Tensor, v: Tensor, att_mask: AttMask | None, dropout: float) -> Call:
    if not q.dim() == k.dim() == v.dim() == 3:
        raise CallError(f"q, k, v are [N, S, D], not {[list(t.shape) for t in (q, k, v)]}")
    allowed, scores = read_att_mask(att_mask, Sizes(q.shape[0], 1, q.shape[1], k.shape[1]))
    return Call(q[:, None], k[:, None], v[:, None], mask=allowed, scores=scores, dropout=dropout)


def _create_random_sparsity(matrix: Tensor, sparsity: float, divisible_by: int = 4) -> Tensor:
    """[B, M, N] with a share `sparsity` of its places, drawn alike for all matrices, set to zero.

    Args:
        matrix: the numbers.
        sparsity: between 0 and 1.
        divisible_by: the number of places that are kept is a multiple of this.
    """
    if matrix.dim() != 3 or not 0 <= sparsity <= 1:
        raise CallError(f"[B, M, N] and a share between 0 and 1 are needed, not {list(matrix.shape)} and {sparsity}")
    places = matrix.shape[1] * matrix.shape[2]
    count = round(places * (1 - sparsity)) // divisible_by * divisible_by
    kept = torch.zeros(places, dtype=torch.bool, device=matrix.device)
    kept[torch.randperm(places, device=matrix.device)[:count]] = True
    return matrix.masked_fill(~kept.view(matrix.shape[1:]), 0)


__all__ = ["SparseCS", "_create_random_sparsity", "bmm", "scaled_dot_product_attention", "scaled_query_key_softmax"]
