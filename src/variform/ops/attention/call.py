"""`Call`: one attention request with everything it asks for, which a backend serves whole or refuses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variform.errors import ShapeError
from variform.ops.masks import And, Causal, Everything, Mask
from variform.ops.masks.counts import block_layout, count_pairs, real_tensors
from variform.ops.scores import ScoreMod
from variform.ops.weightings import Normaliser

__all__ = ["Call"]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One attention request: weights(scores(q k^T * scale), masked) v, where weights are a softmax by default.

    A query attends to a key where `structure`, `mask`, equal segments and `k_valid` all agree; a query with no key
    gives zeros. Query head i reads key/value head i // (H // Hk).

    Shapes:
        q `[B, H, Lq, D]`, k `[B, Hk, Lk, D]`, v `[B, Hk, Lk, Dv]`, Hk divides H; the result is `[B, H, Lq, Dv]`.
        q_positions, q_segments `[Lq]` or `[B, Lq]`, k_positions, k_segments `[Lk]` or `[B, Lk]`, integers.
        k_valid bool `[B, Lk]`.

    Args:
        structure: mask that belongs to the model's configuration (causal, window, blocks).
        mask: what the caller asked for on top.
        q_positions, k_positions: None = 0..L-1.
        q_segments, k_segments: given together; attention stays within equal ids.
        k_valid: keys that may be attended.
        scores: modifiers applied in order to the scaled scores; those that are `is_late` after the masks.
        weights: how scores become weights; None is softmax.
        scale: factor of q k^T, D ** -0.5 by default.
        dropout: probability on the attention weights; 0 unless training.
        device: target device type for selection where the tensors are stand-ins; q's own by default.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    structure: Mask | None = None
    mask: Mask | None = None
    q_positions: Tensor | None = None
    k_positions: Tensor | None = None
    q_segments: Tensor | None = None
    k_segments: Tensor | None = None
    k_valid: Tensor | None = None
    scores: tuple[ScoreMod, ...] = ()
    weights: Normaliser | None = None
    scale: float | None = None
    dropout: float = 0.0
    device: str | None = None

    @property
    def target(self) -> str:
        """Device type for which a backend is chosen."""
        return self.device or self.q.device.type

    @property
    def softmax_scale(self) -> float:
        """The factor of q k^T."""
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def is_grouped(self) -> bool:
        """Whether several query heads share a key/value head."""
        heads, kv_heads = self.q.shape[1], self.k.shape[1]
        if heads == kv_heads:  # a branch, not its value: a kernel's flag must not be a symbolic bool under compile
            return False
        if heads % kv_heads:
            raise ShapeError(f"{kv_heads} key/value heads do not divide {heads} query heads")
        return True

    @property
    def needs_grad(self) -> bool:
        """Whether a backward pass through q, k or v may follow."""
        return torch.is_grad_enabled() and (self.q.requires_grad or self.k.requires_grad or self.v.requires_grad)

    @property
    def aligned(self) -> bool:
        """Whether queries and keys both count 0..L-1."""
        return self.q_positions is None and self.k_positions is None

    @property
    def is_unrestricted(self) -> bool:
        """Whether every query attends to every key, and no score is modified."""
        return (
            self.structure is None
            and self.mask is None
            and self.k_valid is None
            and self.q_positions is None
            and self.k_positions is None
            and self.q_segments is None
            and self.k_segments is None
            and len(self.scores) == 0
            and self.weights is None
        )

    @property
    def is_plain_causal(self) -> bool:
        """Whether only the causal square is asked for, which kernels know without a mask tensor."""
        return (
            len(self.scores) == 0
            and self.weights is None
            and self.mask is None
            and self.k_valid is None
            and self.q_positions is None
            and self.k_positions is None
            and self.q_segments is None
            and self.k_segments is None
            and self.structure is not None
            and self.q.shape[2] == self.k.shape[2]
            and (type(self.structure) is Causal or self.structure.is_causal)
        )

    def positions(self) -> tuple[Tensor, Tensor]:
        """Positions of queries and keys, `[L]` or `[B, L]`."""
        q, k = self.q_positions, self.k_positions
        if q is None:
            q = torch.arange(self.q.shape[2], device=self.q.device)
        if k is None:
            k = torch.arange(self.k.shape[2], device=self.k.device)
        return q, k

    def bias_of(self, modifier: ScoreMod, dtype: torch.dtype) -> Tensor | None:
        """What a modifier adds to the scores of this call, 4-D; None where it is no added bias."""
        if self.aligned:
            return modifier.aligned(self.q.shape[2], self.k.shape[2], dtype, self.q.device)
        return modifier.additive(*self.positions(), dtype)

    def expanded(self) -> tuple[Tensor, Tensor]:
        """Keys and values with one head per query head."""
        if not self.is_grouped:
            return self.k, self.v
        groups = self.q.shape[1] // self.k.shape[1]
        return self.k.repeat_interleave(groups, dim=1), self.v.repeat_interleave(groups, dim=1)

    def symbolic_mask(self) -> Mask | None:
        """Structure and caller's mask as one symbol; None when every pair is allowed by both."""
        parts = [part for part in (self.structure, self.mask) if part is not None]
        if not parts:
            return None
        symbol = parts[0] if len(parts) == 1 else parts[0] & parts[1]
        return None if symbol.band() == (None, None) else symbol

    def full_mask(self) -> Tensor | None:
        """Everything that restricts attention as one bool tensor, 2-D or 4-D, or None.

        Errors: `ShapeError` when a mask does not fit this call exactly.
        """
        self.check()
        symbol = self.symbolic_mask()
        full: Tensor | None = None
        if symbol is not None:
            q_pos, k_pos = self.positions()
            full = symbol.dense(q_pos, k_pos, self.q_segments, self.k_segments)
        if self.q_segments is not None and self.k_segments is not None:
            q_seg = self.q_segments[:, None] if self.q_segments.dim() == 1 else self.q_segments[:, None, :, None]
            k_seg = self.k_segments if self.k_segments.dim() == 1 else self.k_segments[:, None, None, :]
            same = q_seg == k_seg
            full = same if full is None else full & same
        if self.k_valid is not None:
            valid = self.k_valid[:, None, None, :]
            full = valid if full is None else full & valid
        return full

    def check(self) -> None:
        """Raise `ShapeError` when masks, positions, segments or validity do not fit exactly."""
        batch, heads, q_len, _ = self.q.shape
        k_len = self.k.shape[2]
        for part in (self.structure, self.mask):
            if part is not None:
                part.check(batch, heads, q_len, k_len)
        if (self.q_segments is None) != (self.k_segments is None):
            raise ShapeError("q_segments and k_segments must be given together")
        _fits("q_positions", self.q_positions, batch, q_len)
        _fits("k_positions", self.k_positions, batch, k_len)
        _fits("q_segments", self.q_segments, batch, q_len)
        _fits("k_segments", self.k_segments, batch, k_len)
        if self.k_valid is not None and (self.k_valid.shape != (batch, k_len) or self.k_valid.dtype != torch.bool):
            raise ShapeError(
                f"k_valid: bool [{batch}, {k_len}] expected, got {self.k_valid.dtype} {list(self.k_valid.shape)}"
            )
        for modifier in self.scores:
            modifier.check(batch, heads, q_len, k_len)
        if self.weights is not None:
            self.weights.check(heads)

    def visited_pairs(self) -> int | float:
        """Visited (query, key) pairs of one row and head, as `structure` and `mask` tell; padding does not lower it.

        Without positions both sides count from 0. With positions, whose values a cost estimate cannot read, the
        queries are taken to be the last ones of the keys. Masks whose tensors are stand-ins count as visiting all.
        """
        q_len, k_len = self.q.shape[2], self.k.shape[2]
        offset = 0 if self.aligned else max(0, k_len - q_len)
        countable = [part for whole in (self.structure, self.mask) if whole is not None for part in _countable(whole)]
        if not countable:
            return q_len * k_len
        return count_pairs(countable[0] if len(countable) == 1 else And(tuple(countable)), q_len, k_len, offset)

    def visited_tiles(self, block: int = 128) -> tuple[int, int]:
        """Tiles of `block` queries x `block` keys with a pair that `structure` and `mask` allow in some row: (visited,
        all), of one head or, where heads differ, of all. Causality alone visits those on or below the diagonal.

        Errors: `ShapeError` for a call with positions, whose pairs are not known beforehand.
        """
        if not self.aligned:
            raise ShapeError("which tiles are visited depends on positions whose values are not read")
        q_len, k_len = self.q.shape[2], self.k.shape[2]
        countable = [part for whole in (self.structure, self.mask) if whole is not None for part in _countable(whole)]
        mask = And(tuple(countable)) if countable else Everything()
        with real_tensors():
            layout = block_layout(mask, q_len, k_len, block)
            return int(layout.count_nonzero()), layout.numel()

    def flops(self) -> tuple[int, int]:
        """Floating-point operations of the two products, a multiply-add counting 2: (visited, dense-equivalent).

        Formula: 2 * B * H * pairs * (D + Dv), and what modifiers and weights multiply, which visit all pairs.
        """
        batch, heads, q_len, dim = self.q.shape
        k_len, per_pair = self.k.shape[2], 2 * batch * heads * (dim + self.v.shape[-1])
        more = sum(modifier.flops(batch, heads, q_len, k_len) for modifier in self.scores)
        more += 0 if self.weights is None else self.weights.flops(batch, heads, q_len, k_len)
        return round(per_pair * self.visited_pairs()) + more, per_pair * q_len * k_len + more


def _countable(mask: Mask) -> list[Mask]:
    """The conjuncts of a mask whose pairs can be counted without data of the call."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils import _pytree as pytree

    parts = mask.parts if isinstance(mask, And) else (mask,)
    return [
        part
        for part in parts
        if not part.needs_segments
        and not any(isinstance(leaf, FakeTensor) or _is_meta(leaf) for leaf in pytree.tree_leaves(part))
    ]


def _is_meta(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type == "meta"


def _fits(name: str, values: Tensor | None, batch: int, length: int) -> None:
    if values is None:
        return
    shape = values.shape
    if shape[-1] != length or len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != batch):
        raise ShapeError(f"{name}: [{length}] or [{batch}, {length}] expected, got {list(shape)}")
