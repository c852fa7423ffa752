"""How a model is given the memories of earlier segments, with a decode state and without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from variform.core.part import Part
from variform.errors import ShapeError
from variform.ops.masks import And, Dense, KeyPadding
from variform.parts.kinds import Stack, State, StreamPart
from variform.parts.memories import Memories, Recall, joined_valid
from variform.parts.stream_ops.token_shift import TokenShift
from variform.stack.condition import ConditionedStack
from variform.stack.prefix import in_order
from variform.stack.recurrent import LoopedStack, RecycledStack
from variform.stack.stack import LayerStack
from variform.stack.state import Plan, plan

PASSING = (LayerStack, ConditionedStack, LoopedStack, RecycledStack)
"""Stacks that add no tokens and keep nothing of their own: what their mixers keep is all there is."""


def recall_of(memories: Any, model: nn.Module, streams: Mapping[str, Any], batch: int, state: State | None) -> Recall:
    """Memories as the stream that the steps of one forward take theirs from.

    Args:
        memories: what the caller gave.
        model: the model.
        streams: those of the call.
        batch: rows.
        state: the decode state, if there is one.

    Raises:
        ShapeError: they are none, do not fit, or do not go with another stream.
    """
    if not isinstance(memories, Memories):
        raise ShapeError(f"memories are `Memories(limit=...)` or what the call before returned, not {type(memories)}")
    if memories.limit < 0 or memories.shift < 0:
        raise ShapeError(f"limit and shift are at least 0, not {memories.limit} and {memories.shift}")
    _check_pairs(streams, memories.length, state)
    condition = streams.get("condition")
    if memories.length and condition is not None and condition.dim() == 3:
        raise ShapeError("a condition a token cannot be combined with memories: it says nothing about them")
    _check_valid(memories, batch)
    if state is not None:
        _check_state(state, model)
        if isinstance(memories.valid, tuple):
            raise ShapeError(
                "with a decode state, rows remember the same tokens everywhere: give one valid for all steps"
            )
    shift = 0 if state is not None else memories.length
    return Recall(memories.recalled, (), memories.length, memories.recalled_valid, shift)


def plan_behind(state: State, recall: Recall, batch: int, length: int, streams: Mapping[str, Any]) -> Plan:
    """The plan of the first call with a state, whose memories come in front of the tokens.

    Args:
        state: the state that came in.
        recall: the memories.
        batch: rows.
        length: tokens a row.
        streams: those of the call.

    Raises:
        ShapeError: there is no room for them, or positions are given.
    """
    if streams.get("positions") is not None:
        raise ShapeError("positions cannot be given beside memories and a state: tokens count on from the memories")
    known, positions = recall.own_valid, None
    ahead = recall.length - recall.begun
    valid = joined_valid(recall.length, known, length, streams.get("valid"))
    if known is not None:  # padding among memories keeps its place, and has no slot
        places = (torch.arange(recall.length, device=known.device) - recall.begun).clamp(min=0)
        positions = torch.cat((places, ahead + in_order(streams.get("valid"), length, known.device)), 1)
    made = plan(state, batch, recall.length + length, positions, valid, None)
    made.positions = made.positions[..., recall.length :]
    made.state["ahead"] = made.state["recalled"] = ahead
    made.state["skipped"] = None if known is None else (ahead - known.sum(1, keepdim=True)).squeeze(1)
    return made


def remembered(memories: Memories, recall: Recall) -> Memories:
    """What is remembered after a call.

    Args:
        memories: what the call was given.
        recall: what became of them on the way through the model.

    Raises:
        ShapeError: the model has other steps than the memories are of.
    """
    if not recall.new:
        raise ShapeError("no layer of this model mixes tokens, so there is nothing to remember")
    check_taken(recall)
    return memories.joined(recall.new, recall.new_valid)


def check_taken(recall: Recall) -> None:
    """Refuse memories that no step has taken.

    Raises:
        ShapeError: there are some.
    """
    if recall.old:
        taken = len(recall.new)
        raise ShapeError(f"there are memories for {taken + len(recall.old)} steps, and {taken} mix tokens")


def decodes_behind(model: nn.Module) -> str:
    """What keeps memories from being read into a model's decode state; empty where nothing does.

    They are read where attentions are; a part elsewhere that keeps what stands in places of the whole sequence, or a
    stack that adds tokens, would miss them. A shift of tokens elsewhere begins with the segment, as it does without a
    state.
    """
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    steps = [m for m in model.modules() if isinstance(m, StreamPart) and m.remembers]
    of_context = [m for m in model.modules() if isinstance(m, Part) and "context" in getattr(m, "reads", ())]
    within = {id(m) for step in (*steps, *of_context) for m in step.modules()}  # a context is kept as it is
    outside = [m for m in model.modules() if isinstance(m, Part) and _keeps(m) and id(m) not in within]
    outside = [m for m in outside if not isinstance(m, TokenShift)]
    if outside:
        return ", ".join(sorted({part.name for part in outside}))
    return ", ".join(sorted({stack.name for stack in stacks if not isinstance(stack, PASSING)}))


def _check_pairs(streams: Mapping[str, Any], length: int, state: State | None) -> None:
    """Pairs are told by places, which memories have; by positions nothing is said of what stands before the first."""
    if streams.get("segments") is not None:
        raise ShapeError("segments cannot be combined with memories: they say nothing about them")
    mask = streams.get("mask")
    if state is not None and (mask is not None or streams.get("bias") is not None):
        name = "bias" if mask is None else "mask"
        raise ShapeError(f"{name} cannot be combined with memories and a decode state: it says nothing about them")
    parts = mask.parts if isinstance(mask, And) else () if mask is None else (mask,)
    for part in parts if length else ():
        if not isinstance(part, KeyPadding) and not (isinstance(part, Dense) and part.by == "index"):
            raise ShapeError(f"the mask {part!r} cannot be combined with memories: give its pairs, Dense(tensor)")


def _check_valid(memories: Memories, batch: int) -> None:
    valids = memories.valid if isinstance(memories.valid, tuple) else (memories.valid,)
    for valid in valids:
        if valid is not None and tuple(valid.shape) != (batch, memories.length):
            wanted = [batch, memories.length]
            raise ShapeError(f"the memories' valid is bool {wanted}, not {valid.dtype} {list(valid.shape)}")
    if isinstance(memories.valid, tuple) and len(valids) != len(memories.features):
        raise ShapeError(f"there are memories for {len(memories.features)} steps, and {len(valids)} valid")


def _check_state(state: State, model: nn.Module) -> None:
    if state["count"]:
        raise ShapeError("memories come before all tokens: give them in the first call with a decode state")
    reason = decodes_behind(model)
    if reason:
        raise ShapeError(f"memories cannot be read into this model's decode state, because of {reason}")


def _keeps(part: Part) -> bool:
    return part.stateful and not any(isinstance(child, Part) and child.stateful for child in part.children())
