"""Which key blocks each block of queries reads: the part of block-sparse attention that depends on the mask alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from variform.ops.masks import And, Blocks, Coarse, Mask
from variform.ops.masks.counts import block_layout, real_tensors

__all__ = ["Group", "Indices", "Plan", "conjuncts", "execution_block", "indices", "make_plan", "plan_of_layout"]


@dataclass(frozen=True, eq=False)
class Group:
    """Row blocks that read equally many key blocks.

    Args:
        rows: row blocks, `head * q_blocks + block` in a plan per head.
        tiles: the key blocks of each row, one row after the other.
        count: key blocks a row.
    """

    rows: tuple[int, ...]
    tiles: tuple[int, ...]
    count: int


@dataclass(frozen=True, eq=False)
class Plan:
    """Row blocks grouped by the number of key blocks they read.

    Args:
        per_head: whether heads differ; rows then run over heads and blocks.
        density: share of key blocks that is read.
        exact: whether every pair of a block that is read is attended.
    """

    block: int
    q_blocks: int
    k_blocks: int
    per_head: bool
    groups: tuple[Group, ...]
    density: float
    exact: bool


class Indices(NamedTuple):
    """A plan for given sizes, as rows of tensors `[B * H * blocks, block * D]`: groups after groups, then back."""

    queries: Tensor
    keys: Tensor
    inverse: Tensor


def execution_block(mask: Mask) -> int:
    """The block length to run a mask with: its own where it has a usable one, shorter for narrow windows."""
    parts = conjuncts(mask)
    own = [part.block for part in parts if isinstance(part, (Blocks, Coarse)) and 32 <= part.block <= 256]
    if own:
        return own[0]
    bands = [part.band() for part in parts]
    widths = [band[0] + (band[1] or 0) for band in bands if band is not None and band[0] is not None]
    return 64 if widths and min(widths) < 128 else 128


def conjuncts(mask: Mask) -> tuple[Mask, ...]:
    """The masks that must all agree."""
    return mask.parts if isinstance(mask, And) else (mask,)


def make_plan(mask: Mask, q_len: int, k_len: int, block: int) -> Plan:
    """The plan for a mask over positions 0..L-1; remembered, together with the mask, until its tensors change."""
    return _make_plan(mask, _versions(mask), q_len, k_len, block)


def _versions(mask: Mask) -> tuple[int, ...]:
    if not mask.has_tensors:
        return ()
    leaves = pytree.tree_leaves(mask)
    # Tensors made in inference mode have no version and are taken as constant.
    return tuple(0 if leaf.is_inference() else leaf._version for leaf in leaves if isinstance(leaf, Tensor))


@functools.lru_cache(maxsize=64)
def _make_plan(mask: Mask, versions: tuple[int, ...], q_len: int, k_len: int, block: int) -> Plan:
    with real_tensors():
        layout = block_layout(mask, q_len, k_len, block)
        whole = q_len % block == 0 and k_len % block == 0
        return plan_of_layout(layout, block, whole and isinstance(mask, Blocks) and mask.block == block)


def plan_of_layout(layout: Tensor, block: int, exact: bool) -> Plan:
    """The plan that visits the tiles of a layout.

    Shapes:
        layout: bool [q tiles, k tiles], or [H, ...] where heads differ
    """
    q_blocks, k_blocks = layout.shape[-2:]
    rows = [torch.nonzero(row)[:, 0].tolist() for row in layout.reshape(-1, k_blocks)]
    by_count: dict[int, list[int]] = {}
    for row, tiles in enumerate(rows):
        by_count.setdefault(len(tiles), []).append(row)
    groups = tuple(
        Group(tuple(members), tuple(tile for row in members for tile in rows[row]), count)
        for count, members in sorted(by_count.items())
    )
    density = sum(len(tiles) for tiles in rows) / max(1, layout.numel())
    return Plan(block, q_blocks, k_blocks, layout.dim() == 3, groups, density, exact)


def indices(plan: Plan, batch: int, heads: int, kv_heads: int, device: torch.device, fake: bool) -> Indices:
    """Row numbers for gathering queries and keys and for putting the results back."""
    if fake:
        return _indices(plan, batch, heads, kv_heads, device)
    with real_tensors():
        return _remembered_indices(plan, batch, heads, kv_heads, device)


def _indices(plan: Plan, batch: int, heads: int, kv_heads: int, device: torch.device) -> Indices:
    queries, keys = [], []
    for group in plan.groups:
        rows = torch.tensor(group.rows, dtype=torch.int64, device=device)
        tiles = torch.tensor(group.tiles, dtype=torch.int64, device=device).view(len(group.rows), group.count)
        if plan.per_head:
            head = rows // plan.q_blocks
            samples = torch.arange(batch, device=device)[:, None]
            queries.append(samples * (heads * plan.q_blocks) + rows)
            sources = samples * kv_heads + head // (heads // kv_heads)
            keys.append(sources[..., None] * plan.k_blocks + tiles)
        else:
            samples = torch.arange(batch * heads, device=device)[:, None]
            queries.append(samples * plan.q_blocks + rows)
            sources = samples // (heads // kv_heads)
            keys.append(sources[..., None] * plan.k_blocks + tiles)
    flat = torch.cat([index.flatten() for index in queries])
    return Indices(flat, torch.cat([index.flatten() for index in keys]), flat.argsort())


_remembered_indices = functools.lru_cache(maxsize=64)(_indices)
