"""Upstream's `mems` and `mem_masks`, as memories of the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from variform.dialects.x_transformers.errors import InputError
from variform.parts.memories import Memories


def memories_of(
    mems: Sequence[Tensor] | None, mem_masks: Sequence[Tensor | None] | Tensor | None, limit: int, shift: int
) -> Memories:
    """Memories of the core.

    Args:
        mems: [B, M, dim] a self-attention, in the order in which they run.
        mem_masks: [B, M] bool each, True at what is remembered; one for all may be given once.
        limit: the most tokens that are remembered afterwards.
        shift: each self-attention is given those of the one so many later.

    Raises:
        InputError: tensors that are no memories, or masks that are not of them.
    """
    given: tuple[Any, ...] = () if mems is None else tuple(mems)
    if any(not isinstance(m, Tensor) or m.dim() < 3 for m in given) or len({m.shape for m in given}) > 1:
        raise InputError("mems are features [batch, length, dim], one tensor a self-attention, of one shape")
    if given and not given[0].shape[1]:
        given = ()
    masks = [] if mem_masks is None else [mem_masks] if isinstance(mem_masks, Tensor) else list(mem_masks)
    if masks and not given:
        raise InputError("mem_masks were passed without mems")
    if isinstance(mem_masks, Tensor):
        masks = masks * len(given)
    if masks and len(masks) != len(given):
        raise InputError(f"there are mems for {len(given)} self-attentions, and {len(masks)} mem_masks")
    for mask in masks:
        if mask is not None and (mask.dtype != torch.bool or mask.shape != given[0].shape[:2]):
            raise InputError(f"mem_masks are bool {list(given[0].shape[:2])}, not {mask.dtype} {list(mask.shape)}")
    first = masks[0] if masks else None
    if all(_same(mask, first) for mask in masks):
        return Memories(limit, shift, given, first)
    return Memories(limit, shift, given, tuple(masks))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
