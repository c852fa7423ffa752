"""Masks as the dialect's callers give them, made into the library's own: one place for every convention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from variform.dialects.xformers.components.attention._sputnik_sparse import SparseCS
from variform.dialects.xformers.components.attention.attention_mask import AttentionMask
from variform.dialects.xformers.errors import CallError
from variform.ops.masks import Causal, Dense, Mask
from variform.ops.memo import TensorMemo
from variform.ops.scores import DenseBias, ScoreMod

AttMask = Tensor | AttentionMask | SparseCS | Mask
"""What `att_mask` may be: bool (True = may attend), numbers (see `read_att_mask`), or a mask object."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one attention call.

    Args:
        batch: rows.
        heads: heads.
        queries: query positions.
        keys: key positions.
        per_head: a 3-D mask counts heads, not rows (the block-sparse convention).
    """

    batch: int
    heads: int
    queries: int
    keys: int
    per_head: bool = False


def read_att_mask(mask: AttMask | None, sizes: Sizes) -> tuple[Mask | None, tuple[ScoreMod, ...]]:
    """An attention mask as (what may attend to what, what is added to the scores).

    Bool: True = may attend. Integers: 0 and 1, as bool. Floats: only 0 and 1 with at least one 1 keep and drop; any
    other floats are added to the scores, -inf forbids. Sparse tensors mean what they do written out.

    Shapes:
        [Sq, Sk]; [B, Sq, Sk] or [B * heads, Sq, Sk], rows first; [B|1, heads|1, Sq, Sk]. A square mask that is larger
        than a self-attention's sequence is cropped to its first positions.

    Raises:
        CallError: another shape, dtype or value.
    """
    if mask is None or isinstance(mask, Mask):
        return mask, ()
    if isinstance(mask, SparseCS):
        return Dense(_fitted(mask.allowed, sizes)), ()
    if isinstance(mask, AttentionMask):
        if mask.is_causal and mask.shape[0] == 1 and sizes.queries == sizes.keys <= min(mask.shape[1:]):
            return Causal(), ()
        return _additive(_fitted(mask.values, sizes))
    if not torch.is_tensor(mask):
        raise CallError(f"att_mask is a tensor, an AttentionMask or a SparseCS, not a {type(mask).__name__}")
    full = _fitted(mask if mask.layout == torch.strided else mask.to_dense(), sizes)
    if full.dtype == torch.bool:
        return Dense(full), ()
    kept = _remembered(full, "kept", _ones)
    if kept is not None and (not full.is_floating_point() or bool(kept.any())):
        return Dense(kept), ()
    if not full.is_floating_point():
        raise CallError(f"an att_mask of {mask.dtype} holds 0 and 1 alone; pass bool, or floats that are added")
    return _additive(full)


def read_padding(mask: Any, batch: int, keys: int, name: str) -> Tensor | None:
    """A mask over positions as bool [B, keys], True = a real token.

    Bool: True = real. Numbers: 0 and 1 (1 = real), or floats 0 and -inf (0 = real); nothing else.

    Shapes:
        [B, keys], [1, keys] or [keys]

    Raises:
        CallError: another shape or other values.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (1, 2) or mask.shape[-1] != keys:
        found = list(getattr(mask, "shape", ())) or type(mask).__name__
        raise CallError(f"{name} has the shape [{batch}, {keys}] or [{keys}], not {found}")
    if mask.dim() == 2 and mask.shape[0] not in (1, batch):
        raise CallError(f"{name} has one row for each of the {batch} sequences, not {mask.shape[0]}")
    if mask.dtype == torch.bool:
        real = mask
    elif bool(((mask == 0) | (mask == 1)).all()) and (not mask.is_floating_point() or bool((mask == 1).any())):
        real = mask == 1
    elif mask.is_floating_point() and bool(((mask == 0) | (mask == -torch.inf)).all()):
        real = mask == 0
    else:
        raise CallError(f"{name} marks padding: bool, 0 and 1, or 0 and -inf; it holds other values")
    return real.expand(batch, keys)


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Positions that are real in both masks."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def _additive(full: Tensor) -> tuple[Mask | None, tuple[ScoreMod, ...]]:
    """-inf and 0 alone are a mask, which more backends and attentions know than a bias."""
    kept = _remembered(full, "allowed", _zeros)
    return (None, (DenseBias(full),)) if kept is None else (Dense(kept), ())


def _ones(full: Tensor) -> Tensor | None:
    """Where it is 1, if it holds 0 and 1 alone."""
    return full == 1 if bool(((full == 0) | (full == 1)).all()) else None


def _zeros(full: Tensor) -> Tensor | None:
    """Where it is 0, if it holds 0 and -inf alone."""
    return full == 0 if bool(((full == 0) | (full == -torch.inf)).all()) else None


def _remembered(full: Tensor, kind: str, read: Callable[[Tensor], Tensor | None]) -> Tensor | None:
    """The bool tensor that numbers stand for: one and the same each time, so that its pattern is looked at once."""
    if full.requires_grad:
        return None
    if torch.compiler.is_compiling() or not full.is_cpu:
        return read(full)
    return _KNOWN.get([full], kind, lambda: read(full))


_KNOWN = TensorMemo()


def _fitted(mask: Tensor, sizes: Sizes) -> Tensor:
    """A tensor as [Sq, Sk] or [B|1, heads|1, Sq, Sk]."""
    wanted = (sizes.queries, sizes.keys)
    rows, columns = tuple(mask.shape[-2:]) if mask.dim() >= 2 else (0, 0)
    if sizes.queries == sizes.keys and rows == columns > sizes.keys:
        mask = mask[..., : sizes.queries, : sizes.keys]
    elif (rows, columns) != wanted:
        raise CallError(f"att_mask {list(mask.shape)} does not fit {wanted[0]} queries x {wanted[1]} keys")
    if mask.dim() == 2:
        return mask
    if mask.dim() == 4 and mask.shape[0] in (1, sizes.batch) and mask.shape[1] in (1, sizes.heads):
        return mask
    count = mask.shape[0]
    if mask.dim() == 3 and sizes.per_head and count == sizes.heads:
        return mask.unsqueeze(0)
    if mask.dim() == 3 and count in (1, sizes.batch):
        return mask.unsqueeze(1)
    if mask.dim() == 3 and count == sizes.batch * sizes.heads:
        return mask.reshape(sizes.batch, sizes.heads, *wanted)
    raise CallError(
        f"att_mask {list(mask.shape)} fits neither {sizes.batch} sequences nor {sizes.batch} x {sizes.heads} heads; "
        "one mask a head is written [1, heads, queries, keys]"
    )
