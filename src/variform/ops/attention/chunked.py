"""Attention with changed scores for CPUs: some queries at a time, whose scores are made again in the backward pass.

Written out, a soft cap or a learned bias keeps several tensors of all pairs for the backward pass, and reads and writes
each from memory. Here a chunk's scores stay in the cache, and q, k, v are all that is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from variform.ops.attention.call import Call
from variform.ops.attention.held import tensors_of, with_tensors
from variform.ops.attention.reference import scored
from variform.ops.learned_scores import AddedScores
from variform.ops.masks import After, Mask
from variform.ops.scores import Behind, DenseBias, ScoreMod
from variform.ops.weightings import Normaliser, softmax_or

__all__ = ["ChunkedBackend"]

_BYTES = 1 << 22
"""Of the scores of one chunk, in float32."""
_FEWEST = 16
"""Queries of a chunk."""
_SMALL = 1 << 16
"""Pairs of all rows and heads below which everything fits into the cache at once."""
_REPEATED = 128
"""Keys from which on a copy for each head of a group, which the reference makes, costs more than this detour."""


class ChunkedBackend:
    """Plain operations on some queries at a time; keys that a causal chunk cannot see are not visited.

    Formula: that of the reference. Half precisions are summed, modified and normalised in float32.
    """

    name = "chunked"
    weighs = True

    def refuses(self, call: Call, training: bool) -> str | None:
        """Graphs being compiled, no tokens, what is drawn, functions that learn, and what looks at other queries."""
        if torch.compiler.is_compiling():
            return "a compiler fuses attention that is written out by itself"
        if 0 in (*call.q.shape, *call.k.shape):
            return "there is nothing to cut into chunks"
        if call.dropout or (call.weights is not None and call.weights.is_random):
            return "what is drawn would be drawn anew in the backward pass"
        if call.weights is not None and not call.weights.is_local:
            return f"{type(call.weights).__name__} looks at other queries"
        if torch.is_grad_enabled() and not _is_data((*call.scores, call.weights)):
            return "what a function learns is out of reach of a backward pass that makes scores again"
        rows, columns = slice(0, 1), slice(0, call.k.shape[2])
        for modifier in call.scores:
            if modifier.cut(rows, columns) is None:
                return f"{type(_innermost(modifier)).__name__} looks at other queries"
        return None

    def advantage(self, call: Call, training: bool) -> str | None:
        """On CPU: scores or weights that no fused kernel there computes, or has the gradients of."""
        batch, heads, q_len, _ = call.q.shape
        if torch.compiler.is_compiling() or call.target != "cpu":
            return None
        # In training whatever the size, so that what is kept is one formula of batch and length.
        few = not training and batch * heads * q_len * call.k.shape[2] < _SMALL
        if few and not (call.is_grouped and call.k.shape[2] >= _REPEATED):
            return None
        if call.weights is not None or any(not modifier.is_additive for modifier in call.scores):
            return "scores are made and weighed some queries at a time"
        if training and any(_is_learned(modifier) for modifier in call.scores):
            return "scores are made again in the backward pass, which fused kernels have no gradient of a bias for"
        reach = _reach(call) if call.scores else None
        if reach is not None and reach[1] is not None and not any(_is_dense(modifier) for modifier in call.scores):
            return "no bias of all pairs is made, and keys after a chunk of queries are not visited"
        return None

    def run(self, call: Call) -> Tensor:
        """Compute the call."""
        call.check()
        mask = None if _symbol(call) is not None else call.full_mask()
        tensors = [*tensors_of(call.scores), *tensors_of((call.weights,))]
        out: Tensor = _Chunked.apply(call.q, call.k, call.v, mask, _Work.of(call), *tensors)  # type: ignore[no-untyped-call]
        return out


@dataclass(frozen=True, eq=False)
class _Work:
    """What a call asks for beside its tensors.

    Args:
        modifiers, normaliser: of the call; their tensors are replaced by those given.
        scale: of the products.
        positions: of queries and keys.
        symbol: the whole mask, where places alone tell it; it is made chunk by chunk.
        reach: how far before and after its place a query sees, and keys in front of the sequence; None where unknown.
    """

    modifiers: tuple[ScoreMod, ...]
    normaliser: Normaliser | None
    scale: float
    positions: tuple[Tensor, Tensor]
    symbol: Mask | None
    reach: tuple[int | None, int | None, int] | None

    @classmethod
    def of(cls, call: Call) -> _Work:
        return cls(call.scores, call.weights, call.softmax_scale, call.positions(), _symbol(call), _reach(call))

    def given(self, tensors: list[Tensor]) -> tuple[tuple[ScoreMod, ...], Normaliser | None]:
        """Modifiers and normaliser with these tensors."""
        rest = iter(tensors)
        modifiers = tuple(with_tensors(modifier, rest) for modifier in self.modifiers)
        return modifiers, with_tensors(self.normaliser, rest)

    def chunks(self, q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
        """Queries of a chunk, and the keys that they may see."""
        length, keys = q.shape[2], k.shape[2]
        size = max(_FEWEST, _BYTES // (4 * q.shape[0] * q.shape[1] * keys))
        for start in range(0, length, size):
            stop = min(start + size, length)
            first, last = 0, keys
            if self.reach is not None:
                before, after, front = self.reach
                if before is not None and not front:
                    first = min(max(0, start - before), keys - 1)
                if after is not None:
                    last = min(keys, front + stop + after)
            yield slice(start, stop), slice(first, max(last, first + 1))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, work: _Work, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask, *tensors)
        ctx.work = work
        modifiers, normaliser = work.given(list(tensors))
        out = v.new_empty(*q.shape[:3], v.shape[3])
        for rows, columns in work.chunks(q, k):
            piece = _Piece(work, rows, columns, mask)
            queries, keys, values = _rows(q[:, :, rows], k), k[:, :, columns], v[:, :, columns]
            scores = _products(queries * work.scale, keys, q.shape[1])
            weights = piece.weights(scores, modifiers, normaliser)
            out[:, :, rows] = (_rows(weights.to(v.dtype), v) @ values).view(*weights.shape[:3], -1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, mask, *tensors = ctx.saved_tensors
        work: _Work = ctx.work
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a gradient of the gradient will be asked for
            return _twice(q, k, v, mask, work, tensors, grad, needs)
        grads = [torch.empty_like(q), torch.zeros_like(k, dtype=_wide(k)), torch.zeros_like(v, dtype=_wide(v))]
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs[5:], strict=True)]
        learned: list[Tensor | None] = [None] * len(leaves)
        wanted = [place for place, leaf in enumerate(leaves) if leaf.requires_grad]
        modifiers, normaliser = work.given(leaves)
        for rows, columns in work.chunks(q, k):
            piece = _Piece(work, rows, columns, mask)
            queries, keys, values = _rows(q[:, :, rows], k) * work.scale, k[:, :, columns], v[:, :, columns]
            scores = _products(queries, keys, q.shape[1])
            weights, pull = piece.differentiable(scores, modifiers, normaliser, [leaves[place] for place in wanted])
            coming = _rows(grad[:, :, rows], v)
            grads[2][:, :, columns] += _rows(weights.to(v.dtype), v).transpose(-1, -2) @ coming
            of_scores, *of_leaves = pull((coming @ values.transpose(-1, -2)).view_as(weights).to(weights.dtype))
            for place, found in zip(wanted, of_leaves, strict=True):
                if found is not None:
                    before = learned[place]
                    learned[place] = found if before is None else before + found
            by_key_head = _rows(of_scores.to(k.dtype), k)
            grads[0][:, :, rows] = ((by_key_head @ keys) * work.scale).view_as(q[:, :, rows])
            grads[1][:, :, columns] += by_key_head.transpose(-1, -2) @ queries
        return grads[0], grads[1].to(k.dtype), grads[2].to(v.dtype), None, None, *learned


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some queries and the keys that they may see."""

    work: _Work
    rows: slice
    columns: slice
    mask: Tensor | None

    def weights(self, scores: Tensor, modifiers: Iterable[ScoreMod], normaliser: Normaliser | None) -> Tensor:
        """From products to weights, in the dtype of the products."""
        cut = []
        for modifier in modifiers:
            own = modifier.cut(self.rows, self.columns)
            assert own is not None, "refuses() lets modifiers through that can be cut"
            cut.append(own)
        q_pos, k_pos = self.work.positions
        mask = None if self.mask is None else self.mask[..., _within(self.mask, -2, self.rows), :]
        mask = None if mask is None else mask[..., _within(mask, -1, self.columns)]
        if self.work.symbol is not None:
            mask = self.work.symbol.dense(q_pos[..., self.rows], k_pos[..., self.columns])
        found = scored(scores, cut, normaliser, mask, q_pos[..., self.rows], k_pos[..., self.columns])
        masked = found.masked
        empty = None
        if mask is not None or cut:
            empty = (masked.amax(-1, keepdim=True) == -torch.inf).detach()
            empty = empty if isinstance(empty, FakeTensor) or bool(empty.any()) else None
        weights = softmax_or(normaliser, masked if empty is None else masked.masked_fill(empty, 0.0), found.bare)
        weights = weights if empty is None else weights.masked_fill(empty, 0.0)
        return weights if normaliser is None else normaliser.after(weights, found.products)

    def differentiable(
        self, scores: Tensor, modifiers: Iterable[ScoreMod], normaliser: Normaliser | None, leaves: list[Tensor]
    ) -> tuple[Tensor, Any]:
        """The weights, and what pulls their gradient back to the products and the tensors of the modifiers."""
        with torch.enable_grad():
            start = scores.detach().requires_grad_()
            weights = self.weights(start, modifiers, normaliser)

        def pull(grad: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(weights, [start, *leaves], grad, allow_unused=True)

        return weights.detach(), pull


def _twice(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    work: _Work,
    tensors: list[Tensor],
    grad: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients with a graph of their own, all scores being held."""
    piece = _Piece(work, slice(0, q.shape[2]), slice(0, k.shape[2]), mask)
    weights = piece.weights(_products(_rows(q, k) * work.scale, k, q.shape[1]), *work.given(tensors))
    out = (_rows(weights.to(v.dtype), v) @ v).view_as(grad)
    inputs = [q, k, v, *tensors]
    asked = [place for place, need in enumerate((*needs[:3], *needs[5:])) if need]
    found = torch.autograd.grad(out, [inputs[place] for place in asked], grad, create_graph=True, allow_unused=True)
    grads: list[Tensor | None] = [None] * len(inputs)
    for place, one in zip(asked, found, strict=True):
        grads[place] = one
    return *grads[:3], None, None, *grads[3:]


def _products(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Products of queries, grouped by key head, and keys, one row a query head, in float32 at least."""
    found = queries @ keys.transpose(-1, -2)
    return found.view(found.shape[0], heads, -1, found.shape[3]).to(_wide(found))


def _rows(x: Tensor, like: Tensor) -> Tensor:
    """[B, H, L, D] as [B, Hk, G * L, D]: the heads of a group stand as rows."""
    return x if x.shape[1] == like.shape[1] else x.reshape(x.shape[0], like.shape[1], -1, x.shape[3])


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize < 4 else x.dtype


def _within(mask: Tensor, axis: int, part: slice) -> slice:
    return slice(None) if mask.shape[axis] == 1 else part


def _symbol(call: Call) -> Mask | None:
    symbol = call.symbolic_mask()
    told = call.aligned and call.k_valid is None and call.q_segments is None
    return symbol if told and symbol is not None and not symbol.has_tensors and not symbol.needs_segments else None


def _reach(call: Call) -> tuple[int | None, int | None, int] | None:
    if not call.aligned:
        return None
    symbol: Mask | None = call.symbolic_mask()
    front = 0
    if isinstance(symbol, After):
        front = symbol.count
        symbol = symbol.part
    band = None if symbol is None else symbol.band()
    return None if band is None else (*band, front)


def _is_learned(modifier: ScoreMod) -> bool:
    """Whether it has gradients that are worth another look at the scores: not those of a tensor of all pairs."""
    return not _is_dense(modifier) and any(tensor.requires_grad for tensor in tensors_of((modifier,)))


def _is_dense(modifier: ScoreMod) -> bool:
    """Whether it holds a tensor of all pairs."""
    return isinstance(_innermost(modifier), (AddedScores, DenseBias))


def _innermost(modifier: ScoreMod) -> ScoreMod:
    return modifier.modifier if isinstance(modifier, Behind) else modifier


def _is_data(value: Any) -> bool:
    """Whether all that a modifier or normaliser is made of are tensors and numbers."""
    if isinstance(value, tuple):
        return all(_is_data(item) for item in value)
    if is_dataclass(value):
        return all(_is_data(getattr(value, field.name)) for field in fields(value))
    return not callable(value)
