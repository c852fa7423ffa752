"""Attention with an offset of its scores given as a tensor: softmax(s q k^T + O) v, fused.

A fused kernel computes all pairs whatever the offset hides, and slows down several times over where weights are so
small that they are denormal numbers (ALiBi makes many). So the offset is surveyed once: per head and block of
queries, the keys that can matter at all; only these are visited, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.utils.weak import WeakIdKeyDictionary

from variform.ops.attention import meter
from variform.ops.attention.meter import is_metered
from variform.ops.attention.sdpa import fused
from variform.ops.attention.tiles import Tile, TiledAttention

__all__ = ["Survey", "Tile", "attend_offset", "plain_autograd", "survey", "surveys_remembered"]

_BLOCK = 256
"""Queries of a tile: the fused kernel works on blocks of 64 of them."""
_STEP = 64
"""Keys of a tile are counted in these."""
_SHORTEST = 256
"""Below this many queries or keys, one call on all pairs is as fast."""
_FAR, _FAR_BOUND = 20000.0, 9000.0
"""An offset so far below the best of its row weighs exactly 0 while no score is beyond the bound: masks of half
precision are there, those of full precision by far."""
_NEAR, _NEAR_BOUND = 64.0, 14.0
"""The same up to exp(2 * 14 - 64) = 2e-16 of the row's sum, a key: nothing that float32 can hold."""
_BLIND = -1e30
"""In a row whose best offset is this or lower, scores are lost in rounding: all keys of the best offset weigh alike."""


@dataclass(frozen=True)
class Survey:
    """What of an offset matters.

    Args:
        tiles: all pairs that do.
        blind: some row is masked throughout by numbers, not infinities. Fused kernels keep the logarithm of a row's
            sum, in which such numbers drown its length, and give wrong gradients.
        far: the best of some row is so far from 0 that this logarithm loses digits; tiles count from the best.
    """

    tiles: tuple[Tile, ...]
    blind: bool
    far: bool = False


def attend_offset(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offset: Tensor | None,
    scale: float,
    causal: bool = False,
    source: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T + offset) v; rows that see nothing (-inf throughout) are zeros.

    Shapes:
        q: [B, H, Lq, D]; k: [B, H, Lk, D]; v: [B, H, Lk, Dv] -> [B, H, Lq, Dv]
        offset: [1 or B, 1 or H, Lq, Lk]

    Args:
        q, k, v: queries, keys and values.
        offset: what is added to the scores.
        scale: of the scores.
        causal: query i sees keys <= i only.
        source: the tensor that the offset was cut from, by which its survey is remembered.
    """
    if offset is None:
        return fused(q, k, v, causal=causal, scale=scale)
    dtype = _compute_dtype(q, v)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if offset.dtype != dtype and not (dtype.itemsize < 4 and offset.dtype == torch.float32 and q.is_cpu):
        offset = offset.to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        if offset.requires_grad and torch.is_grad_enabled():
            return _plain(q, k, v, _restricted(offset, causal), scale)
        if is_metered() and isinstance(q, FakeTensor) and meter.target is None:
            return fused(q, k, v, _restricted(offset, causal), scale=scale)  # costs: no value to look at
        if not q.is_cpu or not plain_autograd(q, k, v, offset):
            return _whole(q, k, v, _restricted(offset, causal), scale)
        if not (q.numel() and k.numel()):
            return _plain(q, k, v, _restricted(offset, causal), scale)  # nothing to look at
        found, tiled = _survey_for(q, k, v, offset, scale, causal, source)
        if found.blind:
            return _plain(q, k, v, _restricted(offset, causal), scale)
        if not tiled and found.far:
            return _whole(q, k, v, _restricted(offset, causal), scale)
        if not tiled:
            return fused(q, k, v, _restricted(offset, causal), scale=scale)
        out: Tensor = TiledAttention.apply(q, k, v, found.tiles, scale)  # type: ignore[no-untyped-call]
        return out


def plain_autograd(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors outside of compilers, exporters, and transforms of functions."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or any(isinstance(tensor, FakeTensor) or type(tensor) not in _PLAIN for tensor in tensors)
    )


_PLAIN = (Tensor, torch.nn.Parameter)


def _compute_dtype(q: Tensor, v: Tensor) -> torch.dtype:
    kind = q.device.type
    if torch.is_autocast_enabled(kind) and q.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return v.dtype


def _restricted(offset: Tensor, causal: bool) -> Tensor:
    """With -inf at later keys if they do not count."""
    if not causal:
        return offset
    later = torch.ones(offset.shape[-2:], dtype=torch.bool, device=offset.device).triu(1)
    return offset.masked_fill(later, -torch.inf)


def _plain(q: Tensor, k: Tensor, v: Tensor, offset: Tensor, scale: float) -> Tensor:
    """The formula as it stands: for gradients of the offset, and for rows that a fused kernel gets wrong."""
    empty = (offset == -torch.inf).all(-1, keepdim=True)
    scores = (q @ k.transpose(-1, -2)) * scale + offset
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return weights.to(v.dtype) @ v


def _whole(q: Tensor, k: Tensor, v: Tensor, offset: Tensor, scale: float) -> Tensor:
    """One call on all pairs, for other devices and compilers, where no value can be looked at.

    Offsets count from the best of their row; rows that numbers mask throughout have no scores, only an average.
    """
    best = offset.amax(-1, keepdim=True)
    empty = best == -torch.inf
    offset = (offset - best.masked_fill(empty, 0.0)).masked_fill(empty, 0.0)
    if not q.is_cpu:  # kernels of other devices want a mask of full size
        offset = offset.expand(q.shape[0], q.shape[1], -1, -1)
    return fused(q.masked_fill(best <= _BLIND, 0.0), k, v, offset, scale=scale).masked_fill(empty, 0.0)


def _survey_for(
    q: Tensor, k: Tensor, v: Tensor, offset: Tensor, scale: float, causal: bool, source: Tensor | None
) -> tuple[Survey, bool]:
    """What of the offset matters here, and whether to visit just that."""
    with torch.no_grad():
        # No score is larger than the product of the largest norms.
        bound = float(_largest(q) * _largest(k) * scale)
    near = bound <= _NEAR_BOUND and q.dtype != torch.float64
    reach = _NEAR if near else _FAR
    tiled = bound <= _FAR_BOUND and min(offset.shape[-2:]) >= _SHORTEST and q.shape[-1] == v.shape[-1]
    known = _KNOWN.get()
    if known is None or source is None:
        return survey(offset, reach, causal), tiled
    entries = known.setdefault(source, {})
    key = (reach, offset.dtype, offset.shape, causal)
    if key not in entries:
        entries[key] = survey(offset, reach, causal)
    return entries[key], tiled


def _largest(x: Tensor) -> Tensor:
    largest: Tensor = torch.linalg.vector_norm(x, dim=-1).amax()
    return largest.float()


_KNOWN: ContextVar[Any] = ContextVar("surveys", default=None)


@contextmanager
def surveys_remembered() -> Iterator[None]:
    """Within, each tensor that offsets are cut from is surveyed once; it must not change meanwhile."""
    if _KNOWN.get() is not None:
        yield
        return
    token = _KNOWN.set(WeakIdKeyDictionary())
    try:
        yield
    finally:
        _KNOWN.reset(token)


@torch.no_grad()
def survey(offset: Tensor, reach: float, causal: bool = False) -> Survey:
    """What of an offset can matter: no pair that lies further than `reach` below the best of its row.

    A row that is masked throughout has a best pair too, and keeps all that equal it.

    Shapes:
        offset: [1 or B, 1 or H, Lq, Lk]

    Args:
        offset: the offset.
        reach: how far below the best of its row an offset matters.
        causal: later keys do not count.
    """
    offset = _restricted(offset, causal)
    wide = offset.float() if offset.dtype.itemsize < 4 else offset
    best = wide.amax(-1, keepdim=True)
    if bool(((best <= _BLIND) & (best > -torch.inf)).any()):
        return Survey((), True)
    floor = best.clamp(min=torch.finfo(wide.dtype).min)
    lost = wide < floor - reach
    tiles = []
    for start in range(0, offset.shape[2], _BLOCK):
        rows = slice(start, min(start + _BLOCK, offset.shape[2]))
        spans = _spans(lost[:, :, rows])
        first = 0
        for head in range(1, len(spans) + 1):
            if head < len(spans) and spans[head] == spans[first]:
                continue
            part = (slice(None), slice(first, head), rows, slice(*spans[first]))
            if spans[first][1]:
                near = (wide[part] - floor[:, first:head, rows]).masked_fill(lost[part], -torch.inf).to(offset.dtype)
                tiles.append(Tile(part[1] if len(spans) > 1 else slice(None), rows, part[3], near))
            first = head
    return Survey(tuple(tiles), False, bool((best[best > -torch.inf].abs() > _NEAR).any()))


def _spans(lost: Tensor) -> list[tuple[int, int]]:
    """For each head, from which to which key any row sees something; (0, 0) where none does."""
    seen = ~lost.all(2).all(0)  # [H, Lk]
    spans = []
    for row in seen:
        places = row.nonzero()
        if not len(places):
            spans.append((0, 0))
            continue
        first, last = int(places[0]), int(places[-1]) + 1
        spans.append((first // _STEP * _STEP, min(-(-last // _STEP) * _STEP, len(row))))
    return spans
