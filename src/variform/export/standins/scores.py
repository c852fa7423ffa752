"""The attention of programs as a standalone file has it: from queries, keys and an offset of the scores."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNEQUAL, STRIDED = True, True
"""Facts of one model, put into the code when it is written: queries and values have heads of different sizes; they may
be views whose features do not lie side by side."""


class Scores(nn.Module):
    """Scaled dot products: S_ij = q_i . k_j / sqrt(D) (Vaswani et al. 2017, arXiv:1706.03762)."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        scores: Tensor = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return scores


def attend_alone(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, fused: the scores are never held."""
    return fused(q, k, v, None, q.shape[-1] ** -0.5, causal)


def attend_offset(q: Tensor, k: Tensor, v: Tensor, offset: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D) + offset) v, fused: the scores are never held. Rows that see nothing are zeros."""
    scale = q.shape[-1] ** -0.5
    offset = offset_for(offset, q, k).to(q.dtype)
    if causal:
        later = torch.ones(offset.shape[-2:], dtype=torch.bool, device=offset.device).triu(1)
        offset = offset.masked_fill(later, -torch.inf)
    best = offset.detach().amax(-1, keepdim=True)
    if not q.is_cpu or torch.compiler.is_compiling():
        return attend_whole(q, k, v, offset, best, scale)
    is_blind = bool(((best <= BLIND) & (best > -torch.inf)).any())
    if is_blind or (offset.requires_grad and torch.is_grad_enabled()):
        return attend_by_formula(q, k, v, offset, best, scale)
    reach = reach_of(float(largest_norm(q) * largest_norm(k) * scale), q.dtype)
    if min(offset.shape[-2:]) < 256 or math.isinf(reach) or q.shape[-1] != v.shape[-1]:
        return fused(q, k, v, offset, scale)
    out = v.new_zeros(v.shape[0], q.shape[2], v.shape[1], v.shape[3]).transpose(1, 2)
    for heads, rows, keys, part in tiles_of(offset, best, reach):
        out[:, heads, rows] = fused(q[:, heads, rows], k[:, heads, keys], v[:, heads, keys], part, scale)
    return out


BLIND = -1e30
"""A row whose best offset is this or lower is masked throughout, by numbers: fused kernels get its gradients wrong."""


def attend_whole(q: Tensor, k: Tensor, v: Tensor, offset: Tensor, best: Tensor, scale: float) -> Tensor:
    """All pairs at once, for other devices and compilers, where no value can be looked at."""
    empty = best == -torch.inf
    offset = (offset - best.masked_fill(empty, 0.0)).masked_fill(empty, 0.0).expand(*q.shape[:2], -1, -1)
    return fused(q.masked_fill(best <= BLIND, 0.0), k, v, offset, scale).masked_fill(empty, 0.0)


def attend_by_formula(q: Tensor, k: Tensor, v: Tensor, offset: Tensor, best: Tensor, scale: float) -> Tensor:
    """The formula as it stands: for gradients of the offset, and for rows that numbers mask throughout."""
    empty = best == -torch.inf
    scores = (q @ k.transpose(-1, -2)) * scale + offset
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    y: Tensor = weights @ v
    return y


def tiles_of(offset: Tensor, best: Tensor, reach: float) -> list[tuple[slice, slice, slice, Tensor]]:
    """What matters of an offset, nothing `reach` below its row's best: heads, queries, keys, and the offset there."""
    best = best.clamp(min=torch.finfo(offset.dtype).min)
    lost, tiles = offset < best - reach, []
    for start in range(0, offset.shape[2], 256):
        rows = slice(start, min(start + 256, offset.shape[2]))
        spans = [key_span(row) for row in ~lost[:, :, rows].all(2).all(0)]
        for span, group in itertools.groupby(range(len(spans)), spans.__getitem__):
            several, keys = list(group), slice(*span)
            heads = slice(several[0], several[-1] + 1)
            if span[1]:
                near = offset[:, heads, rows, keys] - best[:, heads, rows]
                near = near.masked_fill(lost[:, heads, rows, keys], -torch.inf)
                tiles.append((heads if len(spans) > 1 else slice(None), rows, keys, near))
    return tiles


def key_span(seen: Tensor) -> tuple[int, int]:
    """From which to which key anything is seen, in steps of 64; (0, 0) where nothing is."""
    places = seen.nonzero()
    if not len(places):
        return 0, 0
    return int(places[0]) // 64 * 64, min(-(-(int(places[-1]) + 1) // 64) * 64, len(seen))


def reach_of(largest: float, dtype: torch.dtype) -> float:
    """How far below its row's best an offset has a weight while no score is larger: exp(2 * 14 - 64) is 2e-16."""
    if largest <= 14.0 and dtype != torch.float64:
        return 64.0
    return 20000.0 if largest <= 9000.0 else math.inf


def largest_norm(x: Tensor) -> Tensor:
    """The largest norm of a query or key: no score is larger than the product of two."""
    largest: Tensor = torch.linalg.vector_norm(x.detach(), dim=-1).amax()
    return largest.float()


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool = False) -> Tensor:
    """The fused kernel of softmax attention."""
    if STRIDED:  # it wants the features of a head side by side
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    dim, dim_v = q.shape[-1], v.shape[-1]
    if UNEQUAL and dim != dim_v:  # and heads of equal sizes
        q, k = (F.pad(t, (0, dim_v - dim)) if dim < dim_v else t for t in (q, k))
        v = F.pad(v, (0, dim - dim_v)) if dim_v < dim else v
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    return y[..., :dim_v] if UNEQUAL else y


def offset_for(offset: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The part of an offset that the scores of q and k need."""
    offset, queries, keys = offset[(None,) * (4 - offset.dim())], q.shape[2], k.shape[2]
    rows = slice(None) if offset.shape[2] == 1 else slice(queries)
    columns = slice(None) if offset.shape[3] == 1 else slice(keys)
    return offset[:, :, rows, columns].expand(-1, -1, queries, keys)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, H * D] to [B, H, L, D]."""
    batch, length, _ = x.shape
    return x.view(batch, length, heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, L, D] to [B, L, H * D]."""
    batch, _, length, _ = x.shape
    return x.transpose(1, 2).reshape(batch, length, -1)
