"""Fused attention on the pairs that matter: tiles of queries and keys, one kernel call each, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from variform.errors import BackendError

__all__ = ["Tile", "TiledAttention"]


@dataclass(frozen=True)
class Tile:
    """Queries of some heads, and the keys that they see.

    Args:
        heads: which heads.
        rows: which queries.
        keys: which keys.
        offset: of these pairs, from the best of each row, with -inf at what does not count.
    """

    heads: slice
    rows: slice
    keys: slice
    offset: Tensor


class TiledAttention(torch.autograd.Function):
    """The fused kernel, tile by tile. Autograd through slices would fill and add a whole gradient for each tile."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: tuple[Tile, ...], scale: float) -> Tensor:
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        batch, heads, queries, _ = q.shape
        # Heads beside one another for each query, so that merging them costs nothing.
        out = v.new_zeros(batch, queries, heads, v.shape[-1]).transpose(1, 2)
        logs = []
        for tile in tiles:
            y, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, tile.heads, tile.rows],
                k[:, tile.heads, tile.keys],
                v[:, tile.heads, tile.keys],
                attn_mask=tile.offset,
                scale=scale,
            )
            out[:, tile.heads, tile.rows] = y
            logs.append(log)
        ctx.save_for_backward(q, k, v, out, *logs, *(tile.offset for tile in tiles))
        ctx.tiles, ctx.scale = tiles, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found: tuple[Tensor, ...] = _TiledBackward.apply(grad, ctx.tiles, ctx.scale, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return *found, None, None


class _TiledBackward(torch.autograd.Function):
    """The gradients of `TiledAttention`: a node of its own, which every second derivative passes."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, tiles: tuple[Tile, ...], scale: float, *saved: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, *rest = saved
        logs, offsets = rest[: len(tiles)], rest[len(tiles) :]
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        dq, dk, dv = (torch.zeros_like(t) for t in (q, k, v))
        for tile, log, offset in zip(tiles, logs, offsets, strict=True):
            rows, keys = (slice(None), tile.heads, tile.rows), (slice(None), tile.heads, tile.keys)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[rows],
                q[rows],
                k[keys],
                v[keys],
                out[rows],
                log,
                0.0,
                False,
                attn_mask=offset,
                scale=scale,
            )
            dq[rows] = parts[0]
            dk[keys] += parts[1]
            dv[keys] += parts[2]
        return dq, dk, dv

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise BackendError(
            "fused attention has no second derivative: build the program with attention='literal' to have one"
        )
