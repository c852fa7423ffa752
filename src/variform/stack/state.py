"""Decode state of a model: how many tokens each row has seen, where they stand, and each part's own state.

A state is a plain dict: `count` (the most tokens any row has seen), `seen` [B] (None while all rows have seen `count`),
`positions` [B, max_len + 1] (of the token in each slot; slot i holds i until a caller says otherwise), `segments` (the
same, when documents are packed), `ahead` (how many of them stand in front of the tokens: an integer, or [B, 1]; or
None), `recalled` (the same of memories of earlier segments alone), `skipped` [B] (how many positions have no slot, for
padding in front; or None), `moved` (a slot's position may differ from its number), `bucket`, `context_mask`,
`made_for` (what tells its model), and `parts`, a tree keyed by call. The state that goes in is void, the one that comes
out is to be used: without autograd their buffers are the same, and `turn` (the state's) and `clock` (all of theirs)
tell which is the newest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from variform.core.part import Part
from variform.errors import ShapeError
from variform.parts.kinds import State


def new_state(batch: int, max_len: int, device: Any, parts: State, bucket: int = 0) -> State:
    """An empty state for `batch` rows of at most `max_len` tokens.

    Args:
        batch: rows.
        max_len: capacity of the buffers in tokens.
        device: where the counters live.
        parts: the parts' own state.
        bucket: round the attended length up to a multiple of it (few shapes for compiled steps); 0 is exact.
    """
    return {
        "seen": None,
        "positions": torch.arange(max_len + 1, device=device).repeat(batch, 1),
        "segments": None,
        "count": 0,
        "ahead": None,
        "recalled": None,
        "skipped": None,
        "moved": False,
        "clock": [0],
        "turn": 0,
        "bucket": bucket,
        "parts": parts,
    }


def signature(model: Part) -> str:
    """What tells models apart whose states are not the same: their parts, places and sizes."""
    known: str | None = model.__dict__.get("_signature")
    if known is None:
        parts = ((name, part) for name, part in model.named_modules() if isinstance(part, Part))
        text = "\n".join(f"{name} {part.kind} {part.name} {part.extra_repr()}" for name, part in parts)
        known = model.__dict__["_signature"] = hashlib.sha256(text.encode()).hexdigest()
    return known


def check_state(state: Any, model: Part, tokens: bool, streams: Mapping[str, Any]) -> Any:
    """Refuse a state that is not this model's, and streams that it holds; returns the context mask that holds.

    Args:
        state: what the caller gave.
        model: the model.
        tokens: whether the main input is a sequence.
        streams: those of the call.

    Raises:
        ShapeError: saying what is wrong.
    """
    check_made_for(state, model)
    if not tokens:
        raise ShapeError("images cannot be read into a decode state; run without one")
    if streams["context"] is not None:
        raise ShapeError("the decode state has read its context already: leave context out")
    if state.get("condition") is not None and streams["condition"] is not None:
        raise ShapeError("the decode state holds a condition already: leave condition out")
    if state["context_mask"] is None:
        return streams["context_mask"]
    if streams["context_mask"] is not None:
        raise ShapeError("the decode state holds a context_mask already: leave context_mask out")
    return state["context_mask"]


def check_made_for(state: Any, model: Part) -> None:
    """Refuse a state that is not this model's, or that was used already.

    Raises:
        ShapeError: saying what is wrong.
    """
    if not isinstance(state, dict) or "made_for" not in state:
        raise ShapeError("this is no decode state of this model; make one with init_state")
    if not torch.compiler.is_compiling() and state["made_for"] != signature(model):
        raise ShapeError("the decode state was made by another model; make one with this model's init_state")
    if not torch.compiler.is_compiling() and state["clock"][0] != state["turn"]:
        raise ShapeError(
            "this decode state was used already, and what it held may be overwritten: go on with the state that the "
            "call returned, or use a copy.deepcopy of a state that is needed twice"
        )


def turned(state: State) -> dict[str, Any]:
    """The entries by which a new state tells that the one before is void; without autograd, buffers are shared.

    Args:
        state: the state that came in; its clock is set forward.
    """
    if torch.is_grad_enabled():
        return {"clock": [state["turn"]]}
    if torch.compiler.is_compiling():
        return {}
    state["clock"][0] += 1
    return {"turn": state["clock"][0]}


@dataclass(slots=True)
class Plan:
    """What one forward with a state works from: the streams it adds and the state it leaves (without `parts`)."""

    positions: Tensor
    cache: dict[str, Any]
    state: State


def plan(
    state: State, batch: int, length: int, positions: Tensor | None, valid: Tensor | None, segments: Tensor | None
) -> Plan:
    """Decide where the new tokens go and what they join.

    Args:
        state: the state that came in.
        batch: rows.
        length: new tokens a row (padding included).
        positions: [L] or [B, L] given by the caller; by default each row counts on from what it has seen.
        valid: [B, L], False at padding; rows may have no token at all.
        segments: [B, L] document numbers.

    Raises:
        ShapeError: more tokens than the buffers hold, or segments in some calls only.
    """
    rows = state["positions"].shape[0]
    if rows != batch:
        raise ShapeError(f"the state was made for a batch of {rows}, this call has {batch} rows")
    packed = state["segments"] is not None
    if state["count"] and packed != (segments is not None):
        raise ShapeError("segments must be given in every call with a state, or in none")
    if state["seen"] is None and valid is None:
        return _uniform(state, length, positions, segments)
    return _ragged(state, length, positions, valid, segments)


def room(state: State) -> int:
    """How many tokens more a row can hold; for the state of an encoder-decoder, that of its decoder."""
    if "models" in state:  # of several models that read the same tokens
        return min(room(one) for one in state["models"])
    inner = state.get("decoder", state)
    capacity: int = inner["positions"].shape[1] - 1
    count: int = inner["count"]
    return capacity - count


def count_positions(valid: Tensor | None, segments: Tensor | None) -> Tensor | None:
    """Positions over the valid tokens of each row, starting anew in each segment; None where they are 0..L-1.

    Shapes:
        valid: [B, L] bool; segments: [B, L] integers -> [B, L] integers
    """
    if segments is None:
        return None if valid is None else (valid.long().cumsum(1) - 1).clamp(min=0)
    steps = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    if valid is None:
        order, before = steps, steps - 1
    else:
        order = valid.long().cumsum(1) - 1
        newest = torch.where(valid, steps, -1).cummax(1).values
        before = torch.cat((newest.new_full((newest.shape[0], 1), -1), newest[:, :-1]), 1)
    starts = (before < 0) | (segments != segments.gather(1, before.clamp(min=0)))
    if valid is not None:
        starts = starts & valid
    return (order - torch.where(starts, order, 0).cummax(1).values).clamp(min=0)


def _in_segment(order: Tensor, segments: Tensor) -> Tensor:
    """Positions within their segment of tokens at the slots `order` [B, L] of the buffer `segments` [B, slots]."""
    steps = torch.arange(segments.shape[1], device=segments.device)
    starts = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    return order - torch.where(starts, steps, 0).cummax(1).values.gather(1, order)


def _uniform(state: State, length: int, positions: Tensor | None, segments: Tensor | None) -> Plan:
    start: int = state["count"]
    count = start + length
    _fits(count, state)
    moved = state["moved"] or positions is not None or segments is not None
    buffer, new_segments = state["positions"], _segments(state, segments, start, None)
    if positions is not None or new_segments is not None:
        if positions is None:
            assert new_segments is not None
            slots = torch.arange(start, count, device=buffer.device).expand(buffer.shape[0], length)
            positions = _in_segment(slots, new_segments)
        buffer = _put(buffer, positions, start, None)
    else:
        positions = buffer[0, start:count]
    attended = _attended(count, state)
    # Bucketed single steps always have the mask, so that a compiled step has no case of its own for a full bucket.
    filling = (length == 1 and state["bucket"] > 0) or attended != count
    cache = {
        "first": start == 0,
        "start": start,
        "slots": None,
        "length": attended,
        "fresh": start == 0 and attended == length and not moved,
        "moved": moved,
        "positions": buffer[:, :attended] if moved else buffer[0, :attended],
        "valid": _filled(count, attended, buffer) if filling else None,
        "segments": None if new_segments is None else new_segments[:, :attended],
    }
    return Plan(
        positions, cache, {**state, "count": count, "moved": moved, "positions": buffer, "segments": new_segments}
    )


def _ragged(state: State, length: int, positions: Tensor | None, valid: Tensor | None, segments: Tensor | None) -> Plan:
    buffer, seen = state["positions"], state["seen"]
    if seen is None:
        seen = torch.full_like(buffer[:, 0], state["count"])
    if valid is None:
        order = slots = seen.unsqueeze(1) + torch.arange(length, device=seen.device)
        new_seen, count = seen + length, state["count"] + length
        _fits(count, state)
    else:
        offset = valid.long().cumsum(1)
        new_seen = seen + offset[:, -1]
        count = int(new_seen.max())
        _fits(count, state)
        # Padding takes a place too, and must not lie beyond the last one where a row is full.
        order = (seen.unsqueeze(1) + (offset - 1).clamp(min=0)).clamp(max=buffer.shape[1] - 2)
        slots = torch.where(valid, order, buffer.shape[1] - 1)
    new_segments = _segments(state, segments, None, slots)
    if positions is not None or new_segments is not None:
        if positions is None:
            assert new_segments is not None
            positions = _in_segment(order, new_segments)
        buffer = _put(buffer, positions, None, slots)
    else:
        positions = order
    attended = _attended(count, state)
    cache = {
        "first": state["count"] == 0,
        "start": None,
        "slots": slots,
        "length": attended,
        "fresh": False,
        "moved": True,
        "positions": buffer[:, :attended],
        "valid": torch.arange(attended, device=seen.device) < new_seen.unsqueeze(1),
        "segments": None if new_segments is None else new_segments[:, :attended],
    }
    new = {**state, "seen": new_seen, "count": count, "moved": True}
    return Plan(positions, cache, {**new, "positions": buffer, "segments": new_segments})


def _filled(count: int, attended: int, buffer: Tensor) -> Tensor:
    return (torch.arange(attended, device=buffer.device) < count).expand(buffer.shape[0], -1)


def _put(buffer: Tensor, values: Tensor, start: int | None, slots: Tensor | None) -> Tensor:
    """Integers carry no gradient, but the caller may keep the old state: copy unless autograd is off."""
    buffer = buffer.clone() if torch.is_grad_enabled() else buffer
    if start is not None:
        buffer[:, start : start + values.shape[-1]] = values
    else:
        assert slots is not None
        buffer.scatter_(1, slots, values.expand_as(slots))
    return buffer


def _segments(state: State, segments: Tensor | None, start: int | None, slots: Tensor | None) -> Tensor | None:
    if segments is None:
        return None
    buffer: Tensor | None = state["segments"]
    if buffer is None:
        buffer = torch.zeros_like(state["positions"])
    return _put(buffer, segments, start, slots)


def _attended(count: int, state: State) -> int:
    bucket: int = state["bucket"]
    capacity: int = state["positions"].shape[1] - 1
    return count if not bucket else min(capacity, -(-count // bucket) * bucket)


def _fits(count: int, state: State) -> None:
    capacity = state["positions"].shape[1] - 1
    if count > capacity:
        raise ShapeError(
            f"the decode state holds {capacity} tokens a row and would need {count}; make it with a larger max_len"
        )
