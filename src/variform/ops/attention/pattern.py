"""What the tensors of a mask leave of the pairs, looked at once and remembered: a band, tiles, or single pairs."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils import _pytree as pytree

from variform.ops.attention.call import Call
from variform.ops.attention.plan import Plan, conjuncts, plan_of_layout
from variform.ops.masks import (
    And,
    Band,
    Causal,
    Documents,
    Everything,
    KeyPadding,
    Mask,
    Padding,
    Window,
)
from variform.ops.masks.counts import band_pairs, real_tensors
from variform.ops.masks.view import grid_view
from variform.ops.memo import TensorMemo

__all__ = ["TILES", "Edges", "Pattern", "pattern_of", "readable", "split"]

TILES = (16, 32, 64, 128)
"""Tile lengths that are compared, the shortest first."""
_LARGEST = 1 << 26
"""Pairs of the largest mask that is written out to be looked at (64 MiB of bool), unless it is given as large."""


@dataclass(frozen=True, eq=False)
class Edges:
    """The pairs of some samples laid side by side, as compressed rows: sample s has rows and columns of its own.

    Shapes:
        starts: [samples * Lq + 1]; rows, columns: [E] integers.
        t_starts: [samples * Lk + 1]; t_columns, order: [E], the transposed pairs and their places among the others.
    """

    starts: Tensor
    rows: Tensor
    columns: Tensor
    t_starts: Tensor
    t_columns: Tensor
    order: Tensor


@dataclass(eq=False)
class Pattern:
    """The pairs that a mask over positions 0..Lq-1 and 0..Lk-1 leaves. Holds no tensor of the mask itself.

    Args:
        q_len, k_len: of the sequences.
        batch, heads: how many masks there are: 1, or as many as the call has rows and heads.
        pairs: of all masks together.
        band: the mask as a symbol, if it is nothing but distances.
    """

    q_len: int
    k_len: int
    batch: int
    heads: int
    pairs: int
    band: Mask | None
    _layouts: dict[int, Tensor] = field(default_factory=dict)
    _densities: dict[int, float] = field(default_factory=dict)
    _plans: dict[int, Plan] = field(default_factory=dict)
    _edges: dict[tuple[int, int], Edges] = field(default_factory=dict)
    inside: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """By tile length and group of a plan: the mask within its tiles."""
    choices: dict[Any, Any] = field(default_factory=dict)
    """By the sizes of a call: how it is best computed (`costs`)."""

    @property
    def density(self) -> float:
        """Share of the pairs that is attended."""
        return self.pairs / max(1, self.batch * self.heads * self.q_len * self.k_len)

    def layout(self, mask: Mask, block: int) -> Tensor:
        """The tiles in which some row of the batch attends: bool [q tiles, k tiles], or [H, ...] where heads differ."""
        if block not in self._layouts:
            with real_tensors():
                if block == TILES[0]:
                    found = _tiles(_dense(mask, self.q_len, self.k_len).any(0), block)
                else:
                    finest = self.layout(mask, TILES[0])
                    found = _tiles(finest, block // TILES[0])
                self._layouts[block] = found[0] if found.dim() == 3 and found.shape[0] == 1 else found
        return self._layouts[block]

    def tile_density(self, mask: Mask, block: int) -> float:
        """Share of the tiles that is visited."""
        if block not in self._densities:
            layout = self.layout(mask, block)
            with real_tensors():
                self._densities[block] = int(layout.count_nonzero()) / max(1, layout.numel())
        return self._densities[block]

    def plan(self, mask: Mask, block: int) -> Plan:
        """The tiles that are visited, for the gathering backend."""
        if block not in self._plans:
            layout = self.layout(mask, block)
            with real_tensors():
                heads = 1 if layout.dim() == 2 else layout.shape[0]
                whole = int(layout.count_nonzero()) * block**2 * self.batch * (self.heads // heads)
                self._plans[block] = plan_of_layout(layout, block, exact=self.pairs == whole)
        return self._plans[block]

    def edges(self, mask: Mask, index: int, samples: int) -> Edges:
        """The pairs of mask number `index` (rows first, then heads), for `samples` samples that share it."""
        if (index, 1) not in self._edges:
            with real_tensors():
                dense = _dense(mask, self.q_len, self.k_len).flatten(0, 1)
                for number, one in enumerate(dense):
                    self._edges[number, 1] = _edges(one)
        if (index, samples) not in self._edges:
            with real_tensors():
                self._edges[index, samples] = _side_by_side(self._edges[index, 1], samples, self.q_len, self.k_len)
        return self._edges[index, samples]


def split(call: Call) -> tuple[Mask | None, Mask | None]:
    """The call's masks as (what belongs to a pattern, what changes with every batch: padding, documents)."""
    parts = [part for whole in (call.structure, call.mask) if whole is not None for part in conjuncts(whole)]
    passing = [part for part in parts if isinstance(part, (Padding, KeyPadding, Documents)) or part.needs_segments]
    lasting = [part for part in parts if part not in passing and part.band() != (None, None)]
    return _and(lasting), _and(passing)


def _and(parts: list[Mask]) -> Mask | None:
    return None if not parts else parts[0] if len(parts) == 1 else And(tuple(parts))


def readable(call: Call, mask: Mask | None) -> bool:
    """Whether there are pairs to be found that no formula tells, and a mask's tensors can be read here and now."""
    if mask is None or (not mask.has_tensors and mask.band() is not None) or not call.aligned or call.target != "cpu":
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._get_tracing_state() is not None or forward_ad._current_level >= 0:
        return False
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return False  # what is read now would be written into a graph
    if any(type(tensor) not in _PLAIN for tensor in (call.q, call.k, call.v)):
        return False
    leaves = [leaf for leaf in pytree.tree_leaves(mask) if isinstance(leaf, Tensor)]
    if any(type(leaf) not in _PLAIN[:3] or not leaf.is_cpu for leaf in leaves):
        return False
    return call.q.shape[2] * call.k.shape[2] <= max([_LARGEST, *(leaf.numel() for leaf in leaves)])


_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer, FakeTensor)


def pattern_of(call: Call, mask: Mask | None) -> Pattern | None:
    """What a mask of a call leaves; None where it is not `readable`.

    Remembered until the tensors change in place or die.
    """
    if mask is None or not readable(call, mask):
        return None
    q_len, k_len = call.q.shape[2], call.k.shape[2]
    mask.check(call.q.shape[0], call.q.shape[1], q_len, k_len)
    every, tree = pytree.tree_flatten(mask)
    leaves = [leaf for leaf in every if isinstance(leaf, Tensor)]
    if not leaves:
        return _look_once(mask, q_len, k_len)
    return _KNOWN.get(leaves, (tree, q_len, k_len), lambda: _look(mask, q_len, k_len))


_KNOWN = TensorMemo()


def _look(mask: Mask, q_len: int, k_len: int) -> Pattern:
    with real_tensors():
        dense = _dense(mask, q_len, k_len)
        pairs = int(dense.count_nonzero())
        return Pattern(q_len, k_len, dense.shape[0], dense.shape[1], pairs, _band(dense, pairs))


_look_once = functools.lru_cache(maxsize=64)(_look)
"""For masks without tensors: they are equal when they say the same."""


def _dense(mask: Mask, q_len: int, k_len: int) -> Tensor:
    """Bool [B|1, H|1, Lq, Lk]."""
    found = mask._visit(grid_view(torch.arange(q_len, device="cpu"), torch.arange(k_len, device="cpu")))
    found = found if found.dim() == 4 else found[None, None]
    return found.expand(*found.shape[:2], q_len, k_len)


def _band(dense: Tensor, pairs: int) -> Mask | None:
    """The only window that it can be, going by its first row and column, if it is that one."""
    masks, (q_len, k_len) = dense.shape[0] * dense.shape[1], dense.shape[-2:]
    if pairs == dense.numel():
        return Everything()
    first = dense[0, 0]
    if not pairs or not bool(first[0, 0]):
        return None
    back, ahead = int(first[:, 0].count_nonzero()) - 1, int(first[0].count_nonzero()) - 1
    band: Band = (None if back == q_len - 1 else back, None if ahead == k_len - 1 else ahead)
    if band_pairs(q_len, k_len, *band) * masks != pairs:
        return None
    symbol = _symbol(band, q_len, k_len)
    same = symbol._visit(grid_view(torch.arange(q_len, device="cpu"), torch.arange(k_len, device="cpu")))
    return symbol if bool((dense == same).all()) else None


def _symbol(band: Band, q_len: int, k_len: int) -> Mask:
    if band == (None, 0):
        return Causal()
    back, ahead = band
    return Window(q_len if back is None else back, k_len if ahead is None else ahead)


def _tiles(fine: Tensor, block: int) -> Tensor:
    """Which tiles of `block` x `block` hold something: [..., Lq, Lk] -> [..., ceil(Lq / block), ceil(Lk / block)]."""
    q_len, k_len = fine.shape[-2:]
    fine = functional.pad(fine, (0, -k_len % block, 0, -q_len % block))
    fine = fine.view(*fine.shape[:-2], fine.shape[-2] // block, block, fine.shape[-1] // block, block)
    return fine.any(-1).any(-2)


def _edges(dense: Tensor) -> Edges:
    rows, columns = dense.nonzero().to(torch.int32).unbind(1)
    columns = columns.contiguous()
    order = torch.argsort(columns, stable=True)
    rows = rows.contiguous()
    return Edges(
        _starts(dense.sum(1)), rows, columns, _starts(dense.sum(0)), rows.index_select(0, order), order.to(torch.int32)
    )


def _starts(counts: Tensor) -> Tensor:
    return functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)


def _side_by_side(one: Edges, samples: int, q_len: int, k_len: int) -> Edges:
    count = one.columns.numel()

    def moved(values: Tensor, step: int) -> Tensor:
        return (values + torch.arange(samples, dtype=torch.int32, device="cpu")[:, None] * step).flatten()

    def starts(values: Tensor) -> Tensor:
        return torch.cat((moved(values[:-1], count), values.new_full((1,), samples * count)))

    return Edges(
        starts(one.starts),
        moved(one.rows, q_len),
        moved(one.columns, k_len),
        starts(one.t_starts),
        moved(one.t_columns, q_len),
        moved(one.order, count),
    )
