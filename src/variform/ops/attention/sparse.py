"""Attention over single pairs for CPUs: scores exist only where the mask leaves a pair, forward and backward."""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from variform.errors import BackendError
from variform.ops.attention import costs
from variform.ops.attention.call import Call
from variform.ops.attention.pattern import Edges, Pattern, pattern_of, readable, split
from variform.ops.masks import Mask
from variform.ops.masks.view import point_view

__all__ = ["SparseBackend"]

_CHUNK = 1 << 16
"""Pairs worked on at once where samples share a mask: few enough for a core's cache, enough to outweigh calls."""
_CHUNK_NUMBERS = 1 << 19
"""Numbers of queries, keys or values worked on at once, which are copied (2 MiB of float32)."""


class SparseBackend:
    """Computes the scores of the pairs that a mask of tensors leaves, and no others.

    Formula: per row, softmax over its pairs; the products with V, and all gradients, are products of a sparse matrix.
    Half precisions are computed in float32.
    """

    name = "sparse"

    def refuses(self, call: Call, training: bool) -> str | None:
        """Other devices than CPU, positions, graphs being compiled, modifiers that are not an added bias of pairs."""
        if torch.compiler.is_compiling():
            return "single pairs are found outside compiled graphs"
        if call.target != "cpu":
            return "products of sparse matrices are for CPUs"
        if not call.aligned:
            return "with positions given, which pairs there are is not known beforehand"
        if any(not (modifier.is_additive and modifier.is_pointwise) for modifier in call.scores):
            return "a score modifier is not an added bias, or not one that is told pair by pair"
        if not readable(call, split(call)[0]):
            return "no mask of tensors that can be read tells which pairs there are"
        return None

    def advantage(self, call: Call, training: bool) -> str | None:
        """Few enough pairs, going by measured times."""
        choice = costs.choose(call, training)
        return choice.why if choice is not None and choice.backend == self.name else None

    def passed_over(self, call: Call, training: bool) -> str | None:
        """How many pairs there are, and from how few on they pay."""
        choice = costs.choose(call, training)
        return None if choice is None else choice.pairs

    def run(self, call: Call) -> Tensor:
        """Compute the call."""
        call.check()
        mask, passing = split(call)
        pattern = pattern_of(call, mask)
        assert mask is not None, "refuses() lets calls with a mask through only"
        assert pattern is not None, "refuses() lets calls with a pattern through only"
        k, v = call.expanded()
        if isinstance(call.q, FakeTensor):
            copies = call.q.shape[0] * call.q.shape[1] // (pattern.batch * pattern.heads)
            return _Kept.apply(call.q, k, v, pattern.pairs * copies, bool(call.dropout))  # type: ignore[no-any-return, no-untyped-call]
        chunks, biases = [], []
        for rows, heads, edges in _places(call, mask, pattern):
            hidden, bias = _changes(call, passing, rows, heads, edges)
            chunks.append(_Chunk(rows, heads, edges, hidden))
            biases += [] if bias is None else [bias]
        work = (tuple(chunks), call.softmax_scale, call.dropout, torch.is_grad_enabled())
        return _Sparse.apply(call.q, k, v, *work, *biases)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Samples that are worked on at once.

    Args:
        rows, heads: which samples of [B, H].
        edges: their pairs.
        hidden: [E], pairs that padding and the like hide in this call.
    """

    rows: slice
    heads: slice
    edges: Edges
    hidden: Tensor | None


def _places(call: Call, mask: Mask, pattern: Pattern) -> Iterator[tuple[slice, slice, Edges]]:
    """Rows and heads that share a mask, with the pairs of as many samples."""
    batch, heads = call.q.shape[:2]
    count = _CHUNK * pattern.batch * pattern.heads // max(1, pattern.pairs)
    numbers = max(call.q[0, 0].numel(), call.k[0, 0].numel(), call.v[0, 0].numel())
    count = max(1, min(count, _CHUNK_NUMBERS // max(1, numbers)))
    wide = 1 if pattern.heads > 1 else min(heads, count)
    high = 1 if pattern.batch > 1 or (wide < heads and pattern.heads == 1) else min(batch, max(1, count // wide))
    for row in range(0, batch, high):
        for head in range(0, heads, wide):
            rows, columns = slice(row, min(row + high, batch)), slice(head, min(head + wide, heads))
            index = (row if pattern.batch > 1 else 0) * pattern.heads + (head if pattern.heads > 1 else 0)
            samples = (rows.stop - rows.start) * (columns.stop - columns.start)
            yield rows, columns, pattern.edges(mask, index, samples)


def _changes(
    call: Call, passing: Mask | None, rows: slice, heads: slice, edges: Edges
) -> tuple[Tensor | None, Tensor | None]:
    """What this call hides of some samples' pairs and adds to their scores, pair by pair."""
    if passing is None and call.k_valid is None and call.q_segments is None and not call.scores:
        return None, None
    high, wide = rows.stop - rows.start, heads.stop - heads.start
    count = edges.columns.numel() // (high * wide)
    # The samples share their pairs: axes of their own for rows and heads keep what is looked up small.
    q, k = edges.rows[:count].view(1, 1, -1), edges.columns[:count].view(1, 1, -1)
    b = torch.arange(rows.start, rows.stop, device="cpu").view(-1, 1, 1)
    h = torch.arange(heads.start, heads.stop, device="cpu").view(1, -1, 1)
    view = point_view(b, h, q, k, q_seg=call.q_segments, k_seg=call.k_segments)
    kept: list[Tensor] = [] if passing is None else [passing._visit(view)]
    if view.q_seg is not None and view.k_seg is not None:
        kept.append(view.q_seg == view.k_seg)
    if call.k_valid is not None:
        kept.append(call.k_valid[b, k])
    shape = (high, wide, count)
    hidden = (~functools.reduce(operator.and_, kept)).expand(shape).reshape(-1) if kept else None
    if not call.scores:
        return hidden, None
    bias = torch.zeros((), dtype=_compute_dtype(call.q), device="cpu")
    for modifier in call.scores:
        function = modifier.score_mod()
        assert function is not None, "refuses() lets modifiers with a point-wise form through only"
        bias = function(bias, b, h, q, k)
    return hidden, bias.to(_compute_dtype(call.q)).expand(shape).reshape(-1)


def _compute_dtype(like: Tensor) -> torch.dtype:
    return torch.float32 if like.dtype.itemsize < 4 else like.dtype


class _Sparse(torch.autograd.Function):
    """softmax over the pairs of each row. Kept for backward: exp(score - best of its row) a pair, one sum a row."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        chunks: tuple[_Chunk, ...],
        scale: float,
        dropout: float,
        keep: bool,
        *biases: Tensor,
    ) -> Tensor:
        batch, heads, q_len, _ = q.shape
        # Heads beside one another for each query, so that merging them costs nothing.
        out = v.new_empty(batch, q_len, heads, v.shape[-1]).transpose(1, 2)
        kept: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for place, chunk in enumerate(chunks):
                scores = _products(chunk.edges, _take(q, chunk), _take(k, chunk), scale)
                weights, inverse = _softmax(scores, chunk, biases[place] if biases else None)
                kept += (weights, inverse) if keep else ()
                if dropout:
                    stays = torch.empty_like(weights, dtype=torch.bool).bernoulli_(1 - dropout)
                    kept += (stays,) if keep else ()
                    weights = weights * stays
                edges, values = chunk.edges, _take(v, chunk)
                _put(out, chunk, _times(edges.starts, edges.columns, weights, values).mul_(inverse / (1 - dropout)))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.chunks, ctx.scale, ctx.dropout = chunks, scale, dropout
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with_biases = any(ctx.needs_input_grad[7:])
        work = (ctx.chunks, ctx.scale, ctx.dropout, with_biases)
        dq, dk, dv, *biases = _Backward.apply(grad, *work, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return dq, dk, dv, None, None, None, None, *(biases or [None] * len(ctx.needs_input_grad[7:]))


class _Backward(torch.autograd.Function):
    """The gradients of `_Sparse`: a node of its own, which every second derivative passes."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        chunks: tuple[_Chunk, ...],
        scale: float,
        dropout: float,
        with_biases: bool,
        *saved: Tensor,
    ) -> tuple[Tensor, ...]:
        q, k, v, *kept = saved
        dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))
        biases: list[Tensor] = []
        each, share = (3 if dropout else 2), 1 - dropout
        with torch.autocast("cpu", enabled=False):
            for place, chunk in enumerate(chunks):
                weights, inverse, *dropped = kept[each * place : each * (place + 1)]
                edges, queries, keys = chunk.edges, _take(q, chunk), _take(k, chunk)
                g = _take(grad, chunk)
                change = _products(edges, g, _take(v, chunk), 1 / share)
                left = weights
                for stays in dropped:
                    change, left = change.mul_(stays), weights * stays
                mean = torch.segment_reduce(change * weights, "sum", offsets=edges.starts).mul_(inverse[:, 0])
                change = change.sub_(mean.index_select(0, edges.rows)).mul_(weights)
                _put(dq, chunk, _times(edges.starts, edges.columns, change, keys).mul_(inverse * scale))
                _put(dk, chunk, _times_transposed(edges, change, queries.mul(inverse * scale)))
                _put(dv, chunk, _times_transposed(edges, left, g.mul(inverse / share)))
                if with_biases:
                    biases.append(change.mul_(inverse[:, 0].index_select(0, edges.rows)))
        return dq, dk, dv, *biases

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise BackendError("attention over single pairs has no second derivative: ask for the backend 'reference'")


def _softmax(scores: Tensor, chunk: _Chunk, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """exp(score - best of its row) of each pair, and 1 / their sum by row: [E], [rows, 1]."""
    if bias is not None:
        scores += bias
    if chunk.hidden is not None:
        scores.masked_fill_(chunk.hidden, -torch.inf)
    starts, rows = chunk.edges.starts, chunk.edges.rows
    # A row that sees nothing has the best -inf and the sum 0; both are kept finite, and all its pairs weigh 0.
    best = torch.segment_reduce(scores, "max", offsets=starts).clamp_(min=torch.finfo(scores.dtype).min)
    weights = scores.sub_(best.index_select(0, rows)).exp_()
    total = torch.segment_reduce(weights, "sum", offsets=starts).clamp_(min=1.0)
    return weights, total.reciprocal_()[:, None]


def _products(edges: Edges, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a_i . b_j for each pair (i, j): [E]."""
    if not edges.columns.numel():
        return a.new_zeros(0)
    found = _matrix(edges.starts, edges.columns, a.new_zeros(edges.columns.numel()), b.shape[0])
    torch.sparse.sampled_addmm(found, a, b.t(), beta=0.0, alpha=scale, out=found)
    return found.values()


def _times(starts: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    return _matrix(starts, columns, values, dense.shape[0]) @ dense


def _times_transposed(edges: Edges, values: Tensor, dense: Tensor) -> Tensor:
    return _times(edges.t_starts, edges.t_columns, values.index_select(0, edges.order), dense)


def _matrix(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    size = (starts.numel() - 1, width)
    return torch.sparse_csr_tensor(starts, columns, values, size, device=values.device, check_invariants=False)


def _take(x: Tensor, chunk: _Chunk) -> Tensor:
    """The chunk's samples of [B, H, L, D] below one another, in the type they are computed in: [samples * L, D]."""
    part = x[chunk.rows, chunk.heads]
    return part.reshape(-1, x.shape[-1]).to(_compute_dtype(x)).contiguous()


def _put(x: Tensor, chunk: _Chunk, values: Tensor) -> None:
    part = x[chunk.rows, chunk.heads]
    part.copy_(values.view(part.shape))


class _Kept(torch.autograd.Function):
    """Stands in for `_Sparse` on tensors without values: the same shapes, as many bytes kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pairs: int, dropout: bool) -> Tensor:
        batch, heads, q_len, _ = q.shape
        out = v.new_empty(batch, q_len, heads, v.shape[-1]).transpose(1, 2)
        dtype = _compute_dtype(q)
        kept = [q.new_empty(pairs, dtype=dtype), q.new_empty(batch * heads * q_len, 1, dtype=dtype)]
        ctx.save_for_backward(q, k, v, *kept, *([q.new_empty(pairs, dtype=torch.bool)] if dropout else []))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(torch.empty_like(t) for t in ctx.saved_tensors[:3]), None, None


with warnings.catch_warnings():  # torch says once in a process that compressed rows are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu", check_invariants=False)
