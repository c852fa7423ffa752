"""Features that stand before a model's tokens: what the streams are for both together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from variform.errors import ShapeError
from variform.parts.kinds import State
from variform.stack.state import Plan, plan


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
    _check(prefix, prefix_valid, streams)
    rows, ahead = prefix.shape[:2]
    return {
        "positions": _positions(streams["positions"], ahead, prefix.device),
        "valid": _valid(streams["valid"], prefix_valid, rows, ahead, length, prefix.device),
    }


def plan_prefixed(
    state: State, streams: Mapping[str, Any], sizes: tuple[int, int], prefix: Tensor | None, prefix_valid: Tensor | None
) -> tuple[Plan, Tensor, dict[str, Any]]:
    """The plan of a call with a decode state whose first call may have a prefix.

    The prefix is read with the first chunk and takes the slots before its tokens', for which `init_state(ahead=...)`
    makes room. A state keeps how long it was, and what of each row's was padding, which takes no slot and still counts
    as a position.

    Args:
        state: what came in.
        streams: the tokens' own.
        sizes: rows and tokens.
        prefix: the features in front; in the first call alone.
        prefix_valid: False at padding of the prefix.

    Returns:
        the plan, the tokens' own positions, and the streams `positions` and `valid` over prefix and tokens.

    Raises:
        ShapeError: sizes that do not fit, or a request that is not defined with a prefix.
    """
    (batch, length), valid, positions = sizes, streams["valid"], streams["positions"]
    if prefix is None:
        if prefix_valid is not None:
            raise ShapeError("prefix_valid was given without a prefix")
        ahead, skipped = state["ahead"], state["skipped"]
        if positions is not None:
            positions = positions if ahead is None else positions + ahead
        elif skipped is not None:
            positions = state["seen"].unsqueeze(1) + in_order(valid, length, skipped.device) + skipped.unsqueeze(1)
        planned = plan(state, batch, length, positions, valid, streams["segments"])
        if ahead is None:
            return planned, planned.positions, {}
        return planned, (planned.positions - ahead).clamp(min=0), {"positions": planned.positions}
    _check(prefix, prefix_valid, streams)
    ahead = prefix.shape[1]
    if state["count"]:
        raise ShapeError("the decode state has read tokens already: a prefix belongs to the first call")
    if prefix_valid is not None and positions is None:
        positions = in_order(valid, length, prefix.device).expand(batch, length)
    valid = _valid(valid, prefix_valid, batch, ahead, length, prefix.device)
    planned = plan(state, batch, ahead + length, _positions(positions, ahead, prefix.device), valid, None)
    planned.state["ahead"] = ahead
    planned.state["skipped"] = None if prefix_valid is None else prefix_valid.logical_not().sum(1)
    own = (planned.positions[..., ahead:] - ahead).clamp(min=0)  # padding before a row counts from the prefix on
    return planned, own, {"positions": planned.positions, "valid": valid}


def in_order(valid: Tensor | None, length: int, device: torch.device) -> Tensor:
    """The number of each token within a chunk."""
    return torch.arange(length, device=device) if valid is None else (valid.long().cumsum(1) - 1).clamp(min=0)


def _check(prefix: Tensor, prefix_valid: Tensor | None, streams: Mapping[str, Any]) -> None:
    if streams.get("segments") is not None:
        raise ShapeError("a prefix and segments cannot be combined: the prefix belongs to no document")
    if prefix.dim() != 3 or not prefix.is_floating_point():
        raise ShapeError(f"a prefix is features of shape [batch, length, dim], not {list(prefix.shape)} {prefix.dtype}")
    rows, ahead = prefix.shape[:2]
    if prefix_valid is not None and (prefix_valid.dtype != torch.bool or prefix_valid.shape != (rows, ahead)):
        raise ShapeError(f"prefix_valid is bool of shape [{rows}, {ahead}], not {list(prefix_valid.shape)}")


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
