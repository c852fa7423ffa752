"""Matrices of which some blocks are not zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from variform.dialects.xformers.errors import CallError


class BlockSparseTensor:
    """Matrices [B, H, M, N] of which a layout tells the blocks that are not zero; everything here has gradients.

    `torch.matmul`, `torch.softmax` and dropout take it too.

    Shapes:
        values: [B, nnz, b, b]; mask: [H, M / b, N / b] with nnz places that are not 0, in their order

    Args:
        values: the blocks.
        mask: the layout.

    Raises:
        CallError: the parts do not fit.
    """

    is_sparse = True

    def __init__(self, values: Tensor, mask: Tensor) -> None:
        if values.dim() != 4 or mask.dim() != 3 or values.shape[1] != int((mask != 0).sum()):
            raise CallError(f"values {list(values.shape)} are not the blocks of a layout {list(mask.shape)}")
        self.values = values
        self.mask = mask != 0
        self.heads, self.rows, self.columns = self.mask.nonzero(as_tuple=True)
        self.block = values.shape[-1]
        self.shape = torch.Size(
            (values.shape[0], mask.shape[0], mask.shape[1] * self.block, mask.shape[2] * self.block)
        )

    @classmethod
    def from_dense(cls, matrix: Tensor, mask: Tensor) -> BlockSparseTensor:
        """The blocks of [B, H, M, N] that a layout [H, M / b, N / b] keeps."""
        block = matrix.shape[-1] // mask.shape[-1]
        heads, rows, columns = (mask != 0).nonzero(as_tuple=True)
        batch, count = matrix.shape[:2]
        tiles = matrix.reshape(batch, count, mask.shape[1], block, mask.shape[2], block).transpose(3, 4)
        return cls(tiles[:, heads, rows, columns], mask)

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def with_values(self, values: Tensor) -> BlockSparseTensor:
        """Other numbers in the same blocks."""
        return BlockSparseTensor(values, self.mask)

    def to(self, *args: Any, **kwargs: Any) -> BlockSparseTensor:
        """On another device, or in another dtype."""
        values = self.values.to(*args, **kwargs)
        return BlockSparseTensor(values, self.mask.to(values.device))

    def to_dense(self) -> Tensor:
        """[B, H, M, N] with the zeros written out."""
        batch, heads, rows, columns = self.shape
        out = self.values.new_zeros(batch, heads, rows // self.block, columns // self.block, self.block, self.block)
        every = torch.arange(batch, device=out.device)[:, None]
        out = out.index_put((every, self.heads, self.rows, self.columns), self.values)
        return out.transpose(3, 4).reshape(self.shape)

    def softmax(self) -> BlockSparseTensor:
        """Over the values of each row; blocks that are zero count as -inf."""
        group, groups = self._groups()
        best = self.values.detach().amax(-1)
        low = best.new_full((best.shape[0], groups, self.block), -torch.inf)
        best = low.scatter_reduce(1, group[None, :, None].expand_as(best), best, "amax")
        best = best.clamp(min=torch.finfo(self.dtype).min).index_select(1, group)
        weights = (self.values - best[..., None]).exp()
        total = torch.zeros_like(low).index_add(1, group, weights.sum(-1)).clamp(min=1e-30)
        return self.with_values(weights / total.index_select(1, group)[..., None])

    def __matmul__(self, other: Tensor) -> Tensor:
        """With a dense [B, H, N, D]: [B, H, M, D]."""
        group, groups = self._groups()
        parts = self.values @ _tiles(other, self.block)[:, self.heads, self.columns]
        out = other.new_zeros(other.shape[0], groups, self.block, other.shape[-1]).index_add(1, group, parts)
        return out.view(*self.shape[:3], -1)

    def masked_matmul(self, a: Tensor, b: Tensor) -> BlockSparseTensor:
        """a @ b in these blocks alone: a [B, H, M, K], b [B, H, K, N]."""
        left = _tiles(a, self.block)[:, self.heads, self.rows]
        right = _tiles(b.transpose(-1, -2), self.block)[:, self.heads, self.columns]
        return self.with_values(left @ right.transpose(-1, -2))

    def _groups(self) -> tuple[Tensor, int]:
        """The block row that each block belongs to, counted over heads."""
        rows = self.mask.shape[1]
        return self.heads * rows + self.rows, self.mask.shape[0] * rows

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first, rest, named = args[0], args[1:], kwargs or {}
        if func is torch.matmul and isinstance(first, cls):
            return first @ rest[0]
        if func in (torch.softmax, functional.softmax) and isinstance(first, cls):
            if (rest[0] if rest else named.get("dim")) not in (-1, 3):
                raise CallError("the softmax of block-sparse matrices runs over their rows: dim=-1")
            return first.softmax()
        if func is functional.dropout and isinstance(first, cls):
            return first.with_values(functional.dropout(first.values, *rest, **named))
        return NotImplemented


def _tiles(x: Tensor, block: int) -> Tensor:
    """[B, H, L, K] -> [B, H, L / b, b, K]."""
    return x.reshape(*x.shape[:2], -1, block, x.shape[-1])
