"""Block-sparse attention for CPUs: key blocks are gathered once, then one fused call per group of row blocks.

A dense mask costs a fused kernel as much as full attention, whatever it hides. Here only blocks that the structure
visits are computed, forward and backward: the gather's backward is a single `index_add`.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from variform.ops.attention import costs
from variform.ops.attention.call import Call
from variform.ops.attention.pattern import TILES, Pattern, pattern_of, readable, split
from variform.ops.attention.plan import Group, Plan, conjuncts, execution_block, indices, make_plan
from variform.ops.attention.sdpa import fused
from variform.ops.masks import And, Blocks, Mask
from variform.ops.masks.counts import real_tensors
from variform.ops.masks.view import point_view

__all__ = ["BlockSparseBackend"]

_REMEMBERED_ELEMENTS = 1 << 24
"""Largest mask of a group that is kept between calls (16 MiB of bool)."""


class BlockSparseBackend:
    """Computes only the blocks that the mask's tensor-free part and its block layouts visit."""

    name = "block_sparse"

    def refuses(self, call: Call, training: bool) -> str | None:
        """Other devices than CPU, positions, graphs being compiled, modifiers that are not an added bias of pairs."""
        if torch.compiler.is_compiling():
            return "blocks are chosen outside compiled graphs"
        if call.target != "cpu":
            return "gathering blocks is for CPUs"
        if not call.aligned:
            return "with positions given, which keys are near is not known beforehand"
        if any(not (modifier.is_additive and modifier.is_pointwise) for modifier in call.scores):
            return "a score modifier is not an added bias, or not one that is told pair by pair"
        if not readable(call, split(call)[0]) and _skippable(call) is None:
            return "no structure (window, blocks, global positions) tells which blocks to skip"
        return None

    def advantage(self, call: Call, training: bool) -> str | None:
        """Few enough blocks on long enough sequences."""
        if torch.compiler.is_compiling() or call.target != "cpu" or not call.aligned:
            return None
        if call.is_plain_causal and not call.dropout:
            return None  # the fused kernel skips what comes later
        choice = costs.choose(call, training)
        if choice is not None:
            return choice.why if choice.backend == self.name else None
        share, words = self._share(call)
        return words if share < 1.0 else None

    def passed_over(self, call: Call, training: bool) -> str | None:
        """How many blocks would be visited, and from how few on they pay."""
        choice = costs.choose(call, training)
        return self._share(call)[1] if choice is None else choice.tiles

    def _share(self, call: Call) -> tuple[float, str | None]:
        """The expected time of a mask without tensors to read, as a share of the fused kernel's; and why."""
        mask, q_len, k_len = _skippable(call), call.q.shape[2], call.k.shape[2]
        if mask is None or min(q_len, k_len) < costs.SHORTEST:
            return 1.0, None
        plan = make_plan(mask, q_len, k_len, execution_block(mask))
        price = costs.tile_price(call, plan.block)
        return plan.density * price, costs.blocks_text(plan.density, plan.block, 1 / price)

    def run(self, call: Call) -> Tensor:
        """Compute the call."""
        call.check()
        batch, heads, q_len, _ = call.q.shape
        tiling = _tiling(call)
        plan = tiling.plan
        kv_heads = call.k.shape[1] if call.is_grouped else heads
        index = indices(plan, batch, heads, kv_heads, call.q.device, isinstance(call.q, FakeTensor))
        q = _blocks(call.q, plan.block).index_select(0, index.queries)
        k = _blocks(call.k, plan.block).index_select(0, index.keys)
        v = _blocks(call.v, plan.block).index_select(0, index.keys)
        samples = batch if plan.per_head else batch * heads
        row_sizes = [samples * len(group.rows) for group in plan.groups]
        tile_sizes = [samples * len(group.tiles) for group in plan.groups]
        outs = [
            _attend(call, tiling, group, samples, *parts)
            for group, *parts in zip(
                plan.groups,
                torch.split(q, row_sizes),
                torch.split(k, tile_sizes),
                torch.split(v, tile_sizes),
                strict=True,
            )
        ]
        out = torch.cat(outs).index_select(0, index.inverse)
        return out.view(batch, heads, plan.q_blocks * plan.block, -1)[:, :, :q_len]


@dataclass(frozen=True, eq=False)
class _Tiling:
    """Which tiles of a call are visited.

    Args:
        mask: what the plan was made from.
        pattern: what is remembered of the mask, where it has tensors.
        passing: masks on top that change from call to call.
    """

    plan: Plan
    mask: Mask
    pattern: Pattern | None = None
    passing: Mask | None = None


def _tiling(call: Call) -> _Tiling:
    lasting, passing = split(call)
    pattern = pattern_of(call, lasting)
    if pattern is not None and lasting is not None:
        choice = costs.choose(call, call.needs_grad)
        tile = TILES[-1] if choice is None or choice.tile is None else choice.tile
        return _Tiling(pattern.plan(lasting, tile), lasting, pattern, passing)
    mask = _skippable(call)
    assert mask is not None, "refuses() lets calls with a structure through only"
    return _Tiling(make_plan(mask, call.q.shape[2], call.k.shape[2], execution_block(mask)), mask)


def _skippable(call: Call) -> Mask | None:
    """The conjuncts of the call's masks that tell, before any data is seen, which blocks hold no pair."""
    parts = [part for whole in (call.structure, call.mask) if whole is not None for part in conjuncts(whole)]
    known = [part for part in parts if _is_known(part)]
    if all(part.band() == (None, None) for part in known):
        return None
    return known[0] if len(known) == 1 else And(tuple(known))


def _is_known(mask: Mask) -> bool:
    if mask.needs_segments:
        return False
    if not mask.has_tensors:
        return True
    return isinstance(mask, Blocks) and not any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves(mask))


def _blocks(x: Tensor, block: int) -> Tensor:
    """`[B, H, L, D]` -> `[B * H * blocks, block * D]`, the last block filled with zeros."""
    length, dim = x.shape[2:]
    missing = -length % block
    x = functional.pad(x, (0, 0, 0, missing)) if missing else x
    return x.reshape(-1, block * dim)


def _attend(call: Call, tiling: _Tiling, group: Group, samples: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One group: `[samples * rows, block * D]` -> `[samples * rows, block * Dv]`."""
    plan = tiling.plan
    rows, dim_v = len(group.rows), call.v.shape[-1]
    if group.count == 0:
        # Sums over nothing keep the graph to q, k and v where no block at all is visited.
        return q.new_zeros(samples * rows, plan.block * dim_v) + (q[:0].sum() + k.sum() + v.sum())
    q = q.view(samples, rows, plan.block, -1)
    k = k.view(samples, rows, group.count * plan.block, -1)
    v = v.view(samples, rows, group.count * plan.block, -1)
    mask = _mask(call, tiling, group)
    scale = call.softmax_scale
    return fused(q, k, v, mask, dropout=call.dropout, scale=scale).reshape(samples * rows, -1)


def _mask(call: Call, tiling: _Tiling, group: Group) -> Tensor | None:
    """What hides pairs inside the group's blocks, with the added bias: `[samples | 1, rows, block, count * block]`."""
    plan, symbol = tiling.plan, call.symbolic_mask()
    changes = call.k_valid is not None or call.q_segments is not None or bool(call.scores)
    if tiling.pattern is not None and not isinstance(call.q, FakeTensor):
        inside = None if plan.exact else _inside(call, tiling, group)
        if not changes and tiling.passing is None:
            return inside
        on_top = _evaluate(call, tiling.passing, plan, group)
        if inside is None or on_top is None:
            return on_top if inside is None else inside
        return on_top & inside if on_top.dtype == torch.bool else on_top.masked_fill(~inside, -torch.inf)
    if not changes and symbol is not None:
        if plan.exact and symbol == tiling.mask:
            return None
        remember = not symbol.has_tensors and not isinstance(call.q, FakeTensor)
        if remember and len(group.tiles) * plan.block**2 <= _REMEMBERED_ELEMENTS:
            return _remembered_mask(symbol, plan, group, call.q.shape[2], call.k.shape[2], call.q.device)
    return _evaluate(call, symbol, plan, group)


def _inside(call: Call, tiling: _Tiling, group: Group) -> Tensor:
    """The lasting mask inside the group's blocks, remembered with the tensors that it comes from."""
    assert tiling.pattern is not None, "asked for with a pattern only"
    key = (tiling.plan.block, tiling.plan.groups.index(group))
    known = tiling.pattern.inside.get(key)
    if known is None:
        with real_tensors(), torch.no_grad():
            alone = Call(call.q[..., :0], call.k[..., :0], call.v[..., :0])
            known = _evaluate(alone, tiling.mask, tiling.plan, group)
        assert known is not None, "a mask was given"
        if known.numel() <= _REMEMBERED_ELEMENTS:
            tiling.pattern.inside[key] = known
    return known


@functools.lru_cache(maxsize=64)
def _remembered_mask(
    symbol: Mask, plan: Plan, group: Group, q_len: int, k_len: int, device: torch.device
) -> Tensor | None:
    with real_tensors():
        empty = torch.empty(1, 1, 1, 0, device=device)
        call = Call(empty.expand(1, 1, q_len, 0), empty.expand(1, 1, k_len, 0), empty.expand(1, 1, k_len, 0))
        return _evaluate(call, symbol, plan, group)


def _evaluate(call: Call, symbol: Mask | None, plan: Plan, group: Group) -> Tensor | None:
    """The group's mask from symbols and tensors, point by point, on axes (batch, head, row, query, key)."""
    batch, heads, q_len, _ = call.q.shape
    b, h, q, k = _points(plan, group, batch, heads, call.q.device)
    hidden_keys = k < call.k.shape[2] if call.k.shape[2] % plan.block else None
    q, k = q.clamp(max=q_len - 1), k.clamp(max=call.k.shape[2] - 1)
    masks: list[Tensor | None] = [hidden_keys]
    if symbol is not None or call.q_segments is not None:
        view = point_view(b, h, q, k, q_seg=call.q_segments, k_seg=call.k_segments)
        masks.append(None if symbol is None else symbol._visit(view))
        masks.append(None if view.q_seg is None or view.k_seg is None else view.q_seg == view.k_seg)
    masks.append(None if call.k_valid is None else call.k_valid[b, k])
    present = [mask for mask in masks if mask is not None]
    mask = functools.reduce(operator.and_, present) if present else None
    if call.scores:
        bias = _bias(call, b, h, q, k)
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    if mask is None:
        return None
    mask = mask.expand(*mask.shape[:2], len(group.rows), plan.block, group.count * plan.block)
    if plan.per_head:
        return mask[:, 0]
    if mask.shape[0] == 1 and mask.shape[1] == 1:
        return mask[0]
    return mask.expand(batch, heads, -1, -1, -1).flatten(0, 1)


def _points(plan: Plan, group: Group, batch: int, heads: int, device: torch.device) -> tuple[Tensor, ...]:
    """Batch row, head, query and key of every pair in the group's blocks, each broadcastable to five axes."""
    rows = torch.tensor(group.rows, dtype=torch.int64, device=device)
    tiles = torch.tensor(group.tiles, dtype=torch.int64, device=device).view(len(group.rows), group.count, 1)
    inside = torch.arange(plan.block, device=device)
    q = (rows % plan.q_blocks)[:, None] * plan.block + inside
    k = (tiles * plan.block + inside).flatten(1)
    b = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    h = (rows // plan.q_blocks).view(1, 1, -1, 1, 1)
    if not plan.per_head:
        h = torch.arange(heads, device=device).view(1, -1, 1, 1, 1)
    return b, h, q[None, None, :, :, None], k[None, None, :, None, :]


def _bias(call: Call, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    dtype = torch.float32 if call.q.dtype.itemsize < 4 else call.q.dtype
    bias = torch.zeros((), dtype=dtype, device=call.q.device)
    for modifier in call.scores:
        function = modifier.score_mod()
        assert function is not None, "refuses() lets modifiers with a point-wise form through only"
        bias = function(bias, b, h, q, k)
    return bias.to(dtype)
