"""Masks that hold tensors: padding, packed documents, dense masks, block layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from variform.errors import ConfigError, ShapeError
from variform.ops.masks.base import Mask
from variform.ops.masks.view import View

__all__ = ["Blocks", "Dense", "Documents", "KeyPadding", "Padding"]


@dataclass(frozen=True, eq=False, repr=False)
class Padding(Mask):
    """Keys at position < length are attended, per batch row.

    Shapes: lengths `[B]`, integers.
    """

    lengths: Tensor
    _leaves: ClassVar[tuple[str, ...]] = ("lengths",)

    def __post_init__(self) -> None:
        if self.lengths.dim() != 1 or self.lengths.is_floating_point():
            raise ShapeError(f"Padding(lengths): integers [B] expected, got {_describe(self.lengths)}")

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        _same("Padding(lengths)", "batch", self.lengths.shape[0], batch)

    def _visit(self, view: View) -> Tensor:
        return view.k_pos < view.lift(self.lengths)[view.row(self.lengths.shape[0])]


@dataclass(frozen=True, eq=False, repr=False)
class KeyPadding(Mask):
    """Keys of the call that may be attended, by column.

    Shapes: keep bool `[B, Lk]`.
    """

    keep: Tensor
    _leaves: ClassVar[tuple[str, ...]] = ("keep",)

    def __post_init__(self) -> None:
        if self.keep.dim() != 2 or self.keep.dtype != torch.bool:
            raise ShapeError(f"KeyPadding(keep): bool [B, Lk] expected, got {_describe(self.keep)}")

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        _same("KeyPadding(keep)", "batch", self.keep.shape[0], batch)
        _same("KeyPadding(keep)", "key", self.keep.shape[1], k_len)

    def _visit(self, view: View) -> Tensor:
        return view.lift(self.keep)[view.row(self.keep.shape[0]), view.columns]


@dataclass(frozen=True, eq=False, repr=False)
class Documents(Mask):
    """Tokens attend within their own document; `ids[position]` is a token's document.

    Positions beyond the ids belong to no document and are neither attended nor attending.

    Shapes: ids `[L]` or `[B, L]`, integers.
    """

    ids: Tensor
    _leaves: ClassVar[tuple[str, ...]] = ("ids",)

    def __post_init__(self) -> None:
        if self.ids.dim() not in (1, 2) or self.ids.is_floating_point():
            raise ShapeError(f"Documents(ids): integers [L] or [B, L] expected, got {_describe(self.ids)}")

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        if self.ids.dim() == 2:
            _same("Documents(ids)", "batch", self.ids.shape[0], batch)

    def _visit(self, view: View) -> Tensor:
        size = self.ids.shape[-1]
        known = (view.q_pos < size) & (view.k_pos < size)
        return (self._at(view.q_pos, view) == self._at(view.k_pos, view)) & known

    def _at(self, positions: Tensor, view: View) -> Tensor:
        clamped = positions.clamp(0, self.ids.shape[-1] - 1)
        ids = view.lift(self.ids)
        return ids[clamped] if ids.dim() == 1 else ids[view.row(ids.shape[0]), clamped]


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Mask):
    """A bool tensor, True = may attend.

    Args:
        tensor: `[Lq, Lk]` or `[B|1, H|1, Lq, Lk]`; `[B, Lq, Lk]` with `per="batch"`, `[H, Lq, Lk]` with `per="head"`.
        per: what the first axis of a 3-D tensor counts.
        by: "index" = row and column of the call, whose sizes must be equal; "position" = the positions of queries and
            keys, for decoding with one mask over all positions; pairs beyond the tensor are not attended.

    Errors: `ShapeError` for floats, for a 3-D tensor without `per`, and at use for sizes that do not fit exactly.
    """

    tensor: Tensor
    per: Literal["batch", "head"] | None = None
    by: Literal["index", "position"] = "index"
    _leaves: ClassVar[tuple[str, ...]] = ("tensor",)

    def __post_init__(self) -> None:
        if self.tensor.dtype != torch.bool:
            raise ShapeError(
                f"Dense(tensor): bool (True = may attend) expected, got {_describe(self.tensor)}; convert with "
                "from_additive (0 / -inf), from_torch_mha (True = ignored) or from_key_padding"
            )
        if self.per not in (None, "batch", "head") or self.by not in ("index", "position"):
            raise ConfigError(
                f"Dense(per={self.per!r}, by={self.by!r}): per is 'batch' or 'head', by 'index' or 'position'"
            )
        if self.tensor.dim() == 3 and self.per is None:
            raise ShapeError("Dense(tensor): a 3-D tensor is ambiguous; say per='batch' or per='head'")
        if self.tensor.dim() != 3 and (self.tensor.dim() not in (2, 4) or self.per is not None):
            raise ShapeError(
                f"Dense(tensor): [Lq, Lk] or [B, H, Lq, Lk] expected, or 3-D with `per`; got {_describe(self.tensor)}"
            )

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        if self.by == "index" and (self.tensor.shape[-2] != q_len or self.tensor.shape[-1] != k_len):
            raise ShapeError(
                f"Dense mask {list(self.tensor.shape)} does not fit {q_len} queries x {k_len} keys "
                "(by='position' takes a mask over all positions; from_key_padding one over keys alone)"
            )
        if (self.tensor.dim() == 4 and self.tensor.shape[0] != 1) or self.per == "batch":
            _same("Dense mask", "batch", self.tensor.shape[0], batch)
        if (self.tensor.dim() == 4 and self.tensor.shape[1] != 1) or self.per == "head":
            _same("Dense mask", "head", self.tensor.shape[-3], heads)

    def _full(self, view: View) -> Tensor:
        """2-D or 4-D."""
        tensor = view.lift(self.tensor)
        if tensor.dim() != 3:
            return tensor
        return tensor[:, None] if self.per == "batch" else tensor[None]

    def _visit(self, view: View) -> Tensor:
        full = self._full(view)
        if self.by == "index":
            return full if view.q_index is None else _gather(full, view, view.q_index, view.columns)
        known = (view.q_pos < full.shape[-2]) & (view.k_pos < full.shape[-1])
        q_pos, k_pos = view.q_pos.clamp(0, full.shape[-2] - 1), view.k_pos.clamp(0, full.shape[-1] - 1)
        return _gather(full, view, q_pos, k_pos) & known


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Blocks(Mask):
    """Block-sparse: positions (q, k) are attended where `layout[q // block, k // block]`.

    Positions beyond the layout are neither attended nor attending.

    Shapes: layout bool `[nq, nk]`, or `[H, nq, nk]` per head.
    """

    tensor: Tensor
    block: int
    _leaves: ClassVar[tuple[str, ...]] = ("tensor",)

    def __init__(self, layout: Tensor, block: int) -> None:
        if layout.dim() not in (2, 3) or layout.dtype != torch.bool:
            raise ShapeError(f"Blocks(layout): bool [nq, nk] or [H, nq, nk] expected, got {_describe(layout)}")
        if block < 1:
            raise ConfigError(f"Blocks(block={block}): a block has at least one position")
        object.__setattr__(self, "tensor", layout)
        object.__setattr__(self, "block", block)

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        if self.tensor.dim() == 3 and self.tensor.shape[0] != 1:
            _same("Blocks(layout)", "head", self.tensor.shape[0], heads)

    def _visit(self, view: View) -> Tensor:
        layout = view.lift(self.tensor)
        full = layout if layout.dim() == 2 else layout[None]
        q_block, k_block = view.q_pos // self.block, view.k_pos // self.block
        known = (q_block < full.shape[-2]) & (k_block < full.shape[-1])
        q_block, k_block = q_block.clamp(0, full.shape[-2] - 1), k_block.clamp(0, full.shape[-1] - 1)
        return _gather(full, view, q_block, k_block) & known


def _gather(full: Tensor, view: View, q: Tensor, k: Tensor) -> Tensor:
    """`full[b, h, q, k]` where axes of size 1 are shared; full is 2-D or 4-D."""
    if view.b is None and q.numel() == q.shape[-2] and k.numel() == k.shape[-1]:
        # Two selections of whole rows and columns are much faster than Lq * Lk single look-ups.
        return full.index_select(-2, q.reshape(-1)).index_select(-1, k.reshape(-1))
    if full.dim() == 2:
        return full[q, k]
    return full[view.row(full.shape[0]), view.head(full.shape[1]), q, k]


def _same(what: str, axis: str, size: int, wanted: int | None) -> None:
    if wanted is not None and size != wanted:
        raise ShapeError(f"{what}: {axis} size {size} does not fit the call's {wanted}")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
