"""What models hand to their stacks in upstream, and what a call of a stack alone may be given too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variform.dialects.x_transformers.errors import InputError


def places_from(offset: int | None, x: Tensor, pos: Tensor | None, start: Tensor | None) -> Tensor | None:
    """Positions of tokens that begin at `seq_pos_offset`, [L]; those that are given where there is no offset.

    Raises:
        InputError: positions are given in two ways.
    """
    if offset is None or (offset == 0 and (pos is not None or start is not None)):
        return pos
    if pos is not None or start is not None:
        other = "seq_start_pos" if pos is None else "pos"
        raise InputError(f"seq_pos_offset and {other} exclude one another: both say where tokens stand")
    if type(offset) is not int or offset < 0:
        raise InputError(f"seq_pos_offset is a number of tokens, at least 0, not {offset!r}")
    return torch.arange(offset, offset + x.shape[1], device=x.device)


def deep_gains(given: Any, x: Tensor, depth: int) -> tuple[Tensor, ...] | None:
    """The factors of each feedforward from `deep_embeds_and_ids`, as the stream `token_gains`.

    Shapes:
        given: ([V, depth, dim], [B, L]) -> depth times [B, L, dim]

    Args:
        given: vectors of every token for every feedforward, and the ids of the tokens.
        x: [B, L, dim], what the stack reads.
        depth: how many feedforwards run.

    Raises:
        InputError: sizes that do not fit.
    """
    if given is None:
        return None
    vectors, ids = given
    if vectors.dim() != 3 or tuple(vectors.shape[1:]) != (depth, x.shape[-1]):
        wanted = f"[tokens, {depth}, {x.shape[-1]}], a vector for each feedforward"
        raise InputError(f"the vectors of deep_embeds_and_ids are {wanted}, not {list(vectors.shape)}")
    if ids.shape != x.shape[:2] or ids.is_floating_point():
        raise InputError(f"the ids of deep_embeds_and_ids are integers {list(x.shape[:2])}, not {list(ids.shape)}")
    gains: tuple[Tensor, ...] = vectors[ids].unbind(2)
    return gains
