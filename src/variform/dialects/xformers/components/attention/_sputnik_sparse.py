"""Sparse attention masks and weights, as code for upstream's kernels builds and passes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from variform.dialects.xformers.errors import CallError
from variform.dialects.xformers.sparse.csr_tensor import SparseCSRTensor


class SparseCS:
    """Matrices with the same non-zero places, as an attention mask (its places may attend) or as attention weights.

    Shapes:
        matrix: [M, N] or [B, M, N], zero at the same places in all matrices

    Args:
        matrix: bool or numbers.
        device: where to keep it; the matrix's own by default.
    """

    is_sparse = True

    def __init__(self, matrix: Tensor, device: torch.device | str | None = None) -> None:
        matrix = matrix[None] if matrix.dim() == 2 else matrix
        matrix = matrix.float() if matrix.dtype == torch.bool else matrix
        self._mat = SparseCSRTensor.from_dense(matrix if device is None else matrix.to(device))
        self._allowed: Tensor | None = None

    @classmethod
    def wrap(
        cls,
        shape: Sequence[int],
        values: Tensor,
        row_indices: Tensor,
        row_offsets: Tensor,
        column_indices: Tensor,
        _transp_info: Any = None,
    ) -> SparseCS:
        """From its parts; `row_indices` and `_transp_info` follow from the others."""
        return cls._around(SparseCSRTensor(row_offsets, column_indices, values, shape))

    @classmethod
    def _around(cls, matrix: SparseCSRTensor) -> SparseCS:
        made = cls.__new__(cls)
        made._mat, made._allowed = matrix, None
        return made

    @property
    def allowed(self) -> Tensor:
        """Its places as bool [M, N]; one tensor, so that what is found about it is found once."""
        if self._allowed is None:
            places = self._mat
            found = torch.zeros(places.shape[1:], dtype=torch.bool, device=places.device)
            found[places.row_indices, places.column_indices.long()] = True
            self._allowed = found
        return self._allowed

    @property
    def shape(self) -> torch.Size:
        """[B, M, N]."""
        return self._mat.shape

    @property
    def ndim(self) -> int:
        """Always 3."""
        return 3

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self._mat.dtype

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self._mat.device

    @property
    def values(self) -> Tensor:
        """[B, nnz]."""
        return self._mat.values

    @property
    def row_indices(self) -> Tensor:
        """The row of each value."""
        return self._mat.row_indices

    @property
    def row_offsets(self) -> Tensor:
        """Where each row starts."""
        return self._mat.row_offsets

    @property
    def column_indices(self) -> Tensor:
        """The column of each value."""
        return self._mat.column_indices

    def masked_matmul(self, a: Tensor, b: Tensor) -> SparseCS:
        """a @ b at these places alone."""
        return self._around(self._mat.masked_matmul(a, b))

    def softmax(self) -> SparseCS:
        """Over the values of each row."""
        return self._around(self._mat.softmax())

    def spmm(self, b: Tensor) -> Tensor:
        """With a dense [B, N, D]: [B, M, D]."""
        return self._mat @ b

    def transpose(self) -> SparseCS:
        """[B, N, M]."""
        return self._around(self._mat.transpose())

    def with_values(self, values: Tensor) -> SparseCS:
        """Other numbers at the same places."""
        return self._around(self._mat.with_values(values))

    def logical_and(self, other: Tensor) -> SparseCS:
        """Only the places where a dense bool [M, N] is True as well."""
        return self._around(self._mat & other)

    def __and__(self, other: Tensor) -> SparseCS:
        return self.logical_and(other)

    def __add__(self, other: Any) -> SparseCS:
        return self._around(self._mat + (other._mat if isinstance(other, SparseCS) else other))

    def __mul__(self, other: Any) -> SparseCS:
        return self._around(self._mat * (other._mat if isinstance(other, SparseCS) else other))

    def to(self, *args: Any, **kwargs: Any) -> SparseCS:
        """On another device, or in another dtype."""
        return self._around(self._mat.to(*args, **kwargs))

    def to_dense(self) -> Tensor:
        """[B, M, N] with the zeros written out."""
        return self._mat.to_dense()


def _dense_to_sparse(matrix: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(values [B, nnz], row_indices, row_offsets, column_indices) of [B, M, N]; of [M, N] values [nnz]."""
    if matrix.dim() not in (2, 3):
        raise CallError(f"a matrix [M, N], or a batch [B, M, N], is needed, not {list(matrix.shape)}")
    found = SparseCSRTensor.from_dense((matrix if matrix.dim() == 3 else matrix[None]).to(device))
    return (
        found.values if matrix.dim() == 3 else found.values[0],
        found.row_indices,
        found.row_offsets,
        found.column_indices,
    )


__all__ = ["SparseCS", "_dense_to_sparse"]
