"""Matrices that share their non-zero places."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from variform.dialects.xformers.errors import CallError


class SparseCSRTensor:
    """A batch of matrices with the same non-zero places, in compressed rows; everything here has gradients.

    `torch.bmm`, `torch.matmul`, `torch.softmax`, `torch.add`, `torch.mul` and dropout take it too.

    Shapes:
        row_offsets: [M + 1]; column_indices: [nnz]; values: [B, nnz]; as a whole [B, M, N]

    Args:
        row_offsets: where each row starts.
        column_indices: the column of each value.
        values: the numbers.
        shape: (B, M, N).

    Raises:
        CallError: the parts do not fit.
    """

    is_sparse = True

    def __init__(self, row_offsets: Tensor, column_indices: Tensor, values: Tensor, shape: Sequence[int]) -> None:
        batch, rows, _ = shape
        if values.shape != (batch, column_indices.numel()) or row_offsets.numel() != rows + 1:
            raise CallError(f"values {list(values.shape)}, {column_indices.numel()} columns do not fit {list(shape)}")
        self.row_offsets = row_offsets
        self.column_indices = column_indices
        self.values = values
        self.shape = torch.Size(shape)
        counts = row_offsets.long().diff()
        self.row_indices = torch.arange(rows, device=values.device).repeat_interleave(counts)

    @classmethod
    def from_dense(cls, matrix: Tensor) -> SparseCSRTensor:
        """From [B, M, N], whose matrices must be zero at the same places."""
        if matrix.dim() != 3:
            raise CallError(f"a batch of matrices [B, M, N] is needed, not {list(matrix.shape)}")
        there = matrix[0] != 0
        if not bool(((matrix != 0) == there).all()):
            raise CallError("the matrices of a batch have to be zero at the same places")
        rows, columns = there.nonzero(as_tuple=True)
        offsets = functional.pad(there.sum(1).cumsum(0), (1, 0))
        return cls(offsets.int(), columns.int(), matrix[:, rows, columns], matrix.shape)

    @property
    def ndim(self) -> int:
        """Always 3."""
        return 3

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    @property
    def requires_grad(self) -> bool:
        """Whether the values have a gradient."""
        return self.values.requires_grad

    def with_values(self, values: Tensor) -> SparseCSRTensor:
        """Other numbers at the same places."""
        return SparseCSRTensor(self.row_offsets, self.column_indices, values, (values.shape[0], *self.shape[1:]))

    def to(self, *args: Any, **kwargs: Any) -> SparseCSRTensor:
        """On another device, or in another dtype."""
        values = self.values.to(*args, **kwargs)
        places = [t.to(values.device) for t in (self.row_offsets, self.column_indices)]
        return SparseCSRTensor(places[0], places[1], values, self.shape)

    def to_dense(self) -> Tensor:
        """[B, M, N] with the zeros written out."""
        out = self.values.new_zeros(self.shape)
        rows, columns = self.row_indices, self.column_indices.long()
        return out.index_put((torch.arange(self.shape[0], device=out.device)[:, None], rows, columns), self.values)

    def transpose(self) -> SparseCSRTensor:
        """[B, N, M]."""
        batch, rows, columns = self.shape
        order = torch.argsort(self.column_indices.long(), stable=True)
        counts = torch.bincount(self.column_indices.long(), minlength=columns)
        offsets = functional.pad(counts.cumsum(0), (1, 0)).to(self.row_offsets.dtype)
        turned = self.row_indices[order].to(self.column_indices.dtype)
        return SparseCSRTensor(offsets, turned, self.values[:, order], (batch, columns, rows))

    def softmax(self) -> SparseCSRTensor:
        """Over the values of each row; places that are zero count as -inf."""
        batch, rows, _ = self.shape
        index = self.row_indices.expand(batch, -1)
        low = self.values.new_full((batch, rows), -torch.inf)
        best = low.scatter_reduce(1, index, self.values.detach(), "amax").clamp(min=torch.finfo(self.dtype).min)
        weights = (self.values - best.gather(1, index)).exp()
        total = torch.zeros_like(best).index_add(1, self.row_indices, weights).clamp(min=1e-30)
        return self.with_values(weights / total.gather(1, index))

    def __matmul__(self, other: Tensor) -> Tensor:
        """With a dense [B, N, D]: [B, M, D]."""
        picked = other.index_select(1, self.column_indices.long()) * self.values[..., None]
        return other.new_zeros(self.shape[0], self.shape[1], other.shape[-1]).index_add(1, self.row_indices, picked)

    def __mul__(self, other: float | Tensor | SparseCSRTensor) -> SparseCSRTensor:
        return self._each(operator.mul, other)

    def __add__(self, other: float | Tensor | SparseCSRTensor) -> SparseCSRTensor:
        return self._each(operator.add, other)

    def __and__(self, other: Tensor) -> SparseCSRTensor:
        """Only the places where a dense bool [M, N], or [B, M, N] that is one for all, is True as well."""
        if other.dim() == 3 and not bool((other == other[:1]).all()):
            raise CallError("the matrices of a batch keep the same places: a mask for all of them is needed")
        kept = (other[0] if other.dim() == 3 else other)[self.row_indices, self.column_indices.long()]
        counts = torch.bincount(self.row_indices[kept], minlength=self.shape[1])
        offsets = functional.pad(counts.cumsum(0), (1, 0)).to(self.row_offsets.dtype)
        return SparseCSRTensor(offsets, self.column_indices[kept], self.values[:, kept], self.shape)

    def masked_matmul(self, a: Tensor, b: Tensor) -> SparseCSRTensor:
        """a @ b at these places alone: a [B, M, K], b [B, K, N]."""
        left = a.index_select(1, self.row_indices)
        right = b.transpose(1, 2).index_select(1, self.column_indices.long())
        return self.with_values((left * right).sum(-1))

    def _each(self, act: Callable[[Any, Any], Any], other: Any) -> SparseCSRTensor:
        if isinstance(other, SparseCSRTensor):
            if not torch.equal(other.column_indices, self.column_indices):
                raise CallError("sparse matrices combine when they are zero at the same places")
            other = other.values
        elif isinstance(other, Tensor) and other.dim() > 1:
            other = other.expand(self.shape)[:, self.row_indices, self.column_indices.long()]
        return self.with_values(act(self.values, other))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first, rest, named = args[0], args[1:], kwargs or {}
        if func in (torch.bmm, torch.matmul, Tensor.bmm) and isinstance(first, cls):
            return first @ rest[0]
        if func in (torch.softmax, functional.softmax) and isinstance(first, cls):
            if (rest[0] if rest else named.get("dim")) not in (-1, 2):
                raise CallError("the softmax of sparse matrices runs over their rows: dim=-1")
            return first.softmax()
        if func in (torch.add, torch.mul) and isinstance(first, cls):
            return first + rest[0] if func is torch.add else first * rest[0]
        if func is functional.dropout and isinstance(first, cls):
            return first.with_values(functional.dropout(first.values, *rest, **named))
        return NotImplemented
