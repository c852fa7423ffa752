"""How many tokens of padded rows are real."""

from __future__ import annotations

import torch
from torch import Tensor

from variform.dialects.x_transformers.errors import InputError


def checked_lens(lens: Tensor, batch: int, length: int) -> Tensor:
    """The lengths themselves, one a row.

    Raises:
        InputError: another number of them, values that are no integers, or more tokens than a row has.
    """
    if not isinstance(lens, Tensor):
        raise InputError(f"lens is a tensor of one length a row, [{batch}], not a {type(lens).__name__}")
    if tuple(lens.shape) != (batch,):
        raise InputError(f"lens has one length a row, [{batch}]; got {list(lens.shape)}")
    if lens.is_floating_point() or lens.is_complex() or lens.dtype == torch.bool:
        raise InputError(f"lens are integers, not {lens.dtype}")
    if not torch.compiler.is_compiling() and batch and not 0 <= int(lens.min()) <= int(lens.max()) <= length:
        raise InputError(f"lens are from 0 to the {length} of a row; got {lens.tolist()}")
    return lens


def real_tokens(lens: Tensor, x: Tensor) -> Tensor:
    """[B, L] bool, True at real tokens, of rows [B, L, ..] that are padded on the right; see `checked_lens`."""
    lens = checked_lens(lens, *x.shape[:2])
    return torch.arange(x.shape[1], device=x.device) < lens.unsqueeze(1)
