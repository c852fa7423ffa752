"""Masks from foreign conventions, by name, so that no caller has to guess a polarity."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from variform.errors import ShapeError
from variform.ops.masks.base import Mask
from variform.ops.masks.tensors import Dense, KeyPadding

__all__ = ["from_additive", "from_key_padding", "from_torch_mha"]

_Per = Literal["batch", "head"]


def from_torch_mha(ignored: Tensor, per: _Per | None = None) -> Mask:
    """From `torch.nn.MultiheadAttention`'s boolean `attn_mask`: True = NOT attended.

    Shapes: ignored bool `[Lq, Lk]`, `[B|1, H|1, Lq, Lk]`, or 3-D with `per`; torch's `[B*H, Lq, Lk]` is
        to be viewed as 4-D.
    Errors: `ShapeError` for anything but bool.
    """
    return Dense(~_bool(ignored, "from_torch_mha(ignored)"), per=per)


def from_key_padding(ignore: Tensor | None = None, keep: Tensor | None = None) -> Mask:
    """From a mask over keys: exactly one of `ignore` (True = NOT attended, torch) and `keep` (True = attended).

    Shapes: bool `[B, Lk]`.
    Errors: `ShapeError` for anything but bool, and unless exactly one is given.
    """
    if keep is not None and ignore is None:
        return KeyPadding(_bool(keep, "from_key_padding(keep)"))
    if ignore is not None and keep is None:
        return KeyPadding(~_bool(ignore, "from_key_padding(ignore)"))
    raise ShapeError("from_key_padding: give exactly one of ignore= and keep=")


def from_additive(tensor: Tensor, per: _Per | None = None) -> Mask:
    """From a mask that is added to scores: 0 = attended, -inf = not; any other value is a bias, not a mask.

    Shapes: floats as `Dense` takes them.
    Errors: `ShapeError` for other dtypes and values.
    """
    if not tensor.is_floating_point():
        raise ShapeError(f"from_additive: floats (0 or -inf) expected, got {tensor.dtype}")
    keep = tensor == 0
    if not bool((keep | (tensor == -torch.inf)).all()):
        raise ShapeError(
            "from_additive: only 0 and -inf are a mask; pass other values as an attention bias (DenseBias)"
        )
    return Dense(keep, per=per)


def _bool(tensor: Tensor, what: str) -> Tensor:
    if tensor.dtype != torch.bool:
        raise ShapeError(f"{what}: bool expected, got {tensor.dtype}; from_additive converts 0 / -inf")
    return tensor
