"""Features that stand before a model's tokens: what the streams are for both together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from variform.errors import ShapeError


def behind_prefix(
    prefix: Tensor | None, prefix_valid: Tensor | None, streams: Mapping[str, Any], length: int
) -> dict[str, Any]:
    """The streams `positions` and `valid` over prefix and tokens, from those of the tokens.

    The prefix has the positions 0..P-1, the tokens' are moved on by P.

    Shapes:
        prefix: [B, P, dim]; prefix_valid: [B, P] -> positions [P + L] or [B, P + L] or None, valid [B, P + L] or None

    Args:
        prefix: the features in front; None for none, and nothing changes.
        prefix_valid: False at padding of the prefix; None for none.
        streams: the tokens' own.
        length: how many tokens there are.

    Raises:
        ShapeError: sizes that do not fit, or a request that is not defined with a prefix.
    """
    if prefix is None:
        if prefix_valid is not None:
            raise ShapeError("prefix_valid was given without a prefix")
        return {}
    if streams.get("cache") is not None:
        raise ShapeError("a prefix cannot be read into a decode state; run without one")
    if streams.get("segments") is not None:
        raise ShapeError("a prefix and segments cannot be combined: the prefix belongs to no document")
    if prefix.dim() != 3 or not prefix.is_floating_point():
        raise ShapeError(f"a prefix is features of shape [batch, length, dim], not {list(prefix.shape)} {prefix.dtype}")
    rows, ahead = prefix.shape[:2]
    if prefix_valid is not None and (prefix_valid.dtype != torch.bool or prefix_valid.shape != (rows, ahead)):
        raise ShapeError(f"prefix_valid is bool of shape [{rows}, {ahead}], not {list(prefix_valid.shape)}")
    return {
        "positions": _positions(streams["positions"], ahead, prefix.device),
        "valid": _valid(streams["valid"], prefix_valid, rows, ahead, length, prefix.device),
    }


def _positions(positions: Tensor | None, ahead: int, device: torch.device) -> Tensor | None:
    if positions is None:
        return None
    front = torch.arange(ahead, device=device).expand(*positions.shape[:-1], ahead)
    return torch.cat((front, positions + ahead), -1)


def _valid(
    valid: Tensor | None, prefix_valid: Tensor | None, rows: int, ahead: int, length: int, device: torch.device
) -> Tensor | None:
    if valid is not None and prefix_valid is not None:
        return torch.cat((prefix_valid, valid), 1)
    if valid is not None:
        return F.pad(valid, (ahead, 0), value=True)
    return None if prefix_valid is None else F.pad(prefix_valid, (0, length), value=True)
