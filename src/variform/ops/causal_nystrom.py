"""Causal Nystrom attention: exact nearby, and one landmark for each of ever longer segments further back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from variform.ops.shapes import unflatten

__all__ = ["Pyramid", "Scheme", "attend_groups", "build_pyramid", "merge", "scheme"]


class Scheme(NamedTuple):
    """How far the past of a token is cut up.

    Args:
        chunk: tokens a chunk; the own chunk and the one before it are exact.
        segments: landmarks for each further chunk, be it of this size, or of 2, 4, 8, ... times this size.
    """

    chunk: int
    segments: int

    @property
    def exact(self) -> int:
        """Tokens up to which every result is that of softmax attention."""
        return 2 * self.chunk

    def levels(self, length: int) -> int:
        """How many sizes of chunks there are behind the exact tokens of a sequence of this length."""
        count, chunks = 0, (length - 1) // self.chunk
        while chunks >= 2:
            count, chunks = count + 1, chunks // 2
        return count

    def keys(self, length: int) -> int:
        """Keys and landmarks that a query of a sequence of this length is compared with."""
        return 2 * self.chunk + 2 * self.segments * self.levels(length)


def scheme(landmarks: int) -> Scheme:
    """The cut for a number of landmarks: two chunks hold them, so that a sequence of that length is exact."""
    segments = (landmarks + 3) // 4
    return Scheme(2 * segments, segments)


class Pyramid(NamedTuple):
    """Keys and landmarks, level by level: tokens, then segments of 2, 4, 8, ... of them.

    Shapes:
        q, k: `[B, H, P, D]`, v: `[B, H, P, Dv]`, bias: `[B, H, P, 1]`; starts: the first entry of each level, and
        the end
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor
    starts: tuple[int, ...]


def merge(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two neighbouring segments as one, by the Nystrom factor of rank 1.

    With the landmark query q~ = mean of both, K(q, c) = exp(q . k_c + bias_c) of both parts c, and the landmark key
    k~ = their mean weighted by K(q~, c): sum_c K(q, c) v_c ~ K(q, k~) K(q~, k~)^-1 sum_c K(q~, c) v_c. This is an
    entry like those it is made of: key k~, value = the weighted mean, bias = log sum_c K(q~, c) - q~ . k~.

    Shapes:
        q, k: `[..., 2, D]`, v: `[..., 2, Dv]`, bias: `[..., 2, 1]` -> the same without the 2
    """
    wide = bias.dtype
    landmark, keys = q.to(wide).mean(-2), k.to(wide)
    scores = (keys * landmark.unsqueeze(-2)).sum(-1, keepdim=True) + bias
    weights = scores.softmax(-2)
    key = (weights * keys).sum(-2)
    total = scores.logsumexp(-2) - (landmark * key).sum(-1, keepdim=True)
    return landmark.to(q.dtype), key.to(k.dtype), (weights * v.to(wide)).sum(-2).to(v.dtype), total


def build_pyramid(q: Tensor, k: Tensor, v: Tensor, levels: int) -> Pyramid:
    """The segments of a whole sequence; `q` is scaled, with as many heads as `k`."""
    wide = torch.float32 if k.dtype.itemsize < 4 else k.dtype
    entries = [(q, k, v, torch.zeros_like(k[..., :1], dtype=wide))]
    starts = [0, k.shape[2]]
    for _ in range(levels):
        count = entries[-1][1].shape[2] // 2
        pairs = (unflatten(t[:, :, : 2 * count], 2, (count, 2)) for t in entries[-1])
        entries.append(merge(*pairs))
        starts.append(starts[-1] + count)
    q, k, v, bias = (torch.cat(parts, 2) for parts in zip(*entries, strict=True))
    return Pyramid(q, k, v, bias, tuple(starts))


def attend_groups(q: Tensor, pyramid: Pyramid, first: Tensor, cut: Scheme, levels: int) -> Tensor:
    """Attention of groups of queries of one chunk each.

    A query of rank i sees the tokens of its own chunk up to i and of the chunk before; behind them, the chunks of a
    size that are neither its own of this size, nor the one before, nor part of larger ones that come next.

    Shapes:
        q: `[B, H, G, g, D]`, scaled; the queries of a group have consecutive ranks in one chunk
        first: the rank of each group's first query, `[G]` or `[B, G]` -> `[B, H, G, g, Dv]`
    """
    index, sees = _visible(pyramid.starts, first, q.shape[3], cut, levels)
    batch, heads, groups, size, dim = q.shape
    kv_heads = pyramid.k.shape[1]
    k, v, bias = (_take(t, index) for t in (pyramid.k, pyramid.v, pyramid.bias))
    q = q.view(batch, kv_heads, -1, groups, size, dim).transpose(2, 3)
    scores = (q.flatten(3, 4) @ k.transpose(-1, -2)).to(bias.dtype) + bias.transpose(-1, -2)
    scores = unflatten(scores, 3, (-1, size))
    sees = sees if sees.dim() == 3 else sees.unsqueeze(1)
    weights = scores.masked_fill(~sees.unsqueeze(-3), -torch.inf).softmax(-1).to(v.dtype)
    out = weights.flatten(3, 4) @ v
    return unflatten(out, 3, (-1, size)).transpose(2, 3).reshape(batch, heads, groups, size, -1)


def _visible(starts: tuple[int, ...], first: Tensor, size: int, cut: Scheme, levels: int) -> tuple[Tensor, Tensor]:
    """Entries of the pyramid for each group `[..., G, K]`, and which of them each query sees `[..., G, size, K]`."""
    steps = torch.arange(2 * cut.chunk, device=first.device)
    chunk = first // cut.chunk
    near = ((chunk - 1) * cut.chunk).unsqueeze(-1) + steps
    rank = first.unsqueeze(-1) + torch.arange(size, device=first.device)
    near_sees = (near.unsqueeze(-2) >= 0) & (near.unsqueeze(-2) <= rank.unsqueeze(-1))
    index, sees = [near.clamp(0, starts[1] - 1)], [near_sees]
    steps = torch.arange(2 * cut.segments, device=first.device)
    for level in range(levels):
        begin, end = starts[level + 1], starts[level + 2]
        own = (chunk >> level).unsqueeze(-1)
        segment = (own - 3) * cut.segments + steps
        listed = (segment >= 0) & ((steps >= cut.segments) | (own % 2 == 1))
        index.append(begin + segment.clamp(0, end - begin - 1))
        sees.append(listed.unsqueeze(-2).expand(*listed.shape[:-1], size, -1))
    return torch.cat(index, -1), torch.cat(sees, -1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Entries `[B, H, P, D]` at `[G, K]` or `[B, G, K]`: `[B, H, G, K, D]`."""
    if index.dim() == 2:
        return unflatten(x.index_select(2, index.flatten()), 2, index.shape)
    flat = index.flatten(1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return unflatten(x.gather(2, flat), 2, index.shape[1:])
