"""Where the tokens of a call stand: after what a decode state has read, after memories, after a prefix, or first."""

from __future__ import annotations

from typing import Any

from variform.errors import ShapeError
from variform.parts.kinds import Model, State
from variform.parts.memories import Recall
from variform.stack.prefix import behind_prefix, plan_prefixed
from variform.stack.remembering import plan_behind
from variform.stack.state import Plan, check_state, count_positions


def place_tokens(streams: dict[str, Any], length: int, tokens: bool, recall: Recall | None) -> dict[str, Any]:
    """Give a call without decode state its tokens' positions; the streams that hold behind the embedding.

    Args:
        streams: of the call; `positions` and `memories` are put there.
        length: how many tokens there are.
        tokens: whether the input is tokens, and not images.
        recall: memories that are read.

    Raises:
        ShapeError: a prefix that does not fit.
    """
    if streams["positions"] is None and tokens:
        streams["positions"] = count_positions(streams["valid"], streams["segments"])
    if recall is not None:
        streams["memories"] = recall
    return behind_prefix(streams["prefix"], streams["prefix_valid"], streams, length)


def plan_tokens(
    model: Model, streams: dict[str, Any], sizes: tuple[int, int], tokens: bool, recall: Recall | None, state: State
) -> tuple[Plan, dict[str, Any]]:
    """The plan of a call with a decode state, and the streams that hold behind the embedding.

    Args:
        model: which is called.
        streams: of the call; `positions`, `cache`, `context_mask`, `memories` and `recalled` are put there.
        sizes: rows and tokens.
        tokens: whether the input is tokens, and not images.
        recall: memories that are read with the first chunk.
        state: what came in.

    Raises:
        ShapeError: a state that is not this model's, or a prefix that does not fit or comes with memories.
    """
    streams["context_mask"] = check_state(state, model, tokens, streams)
    streams["condition"] = state.get("condition", streams["condition"])
    prefix = streams["prefix"]
    if recall is None:
        planned, own, after = plan_prefixed(state, streams, sizes, prefix, streams["prefix_valid"])
    elif prefix is not None:
        raise ShapeError("memories and a prefix cannot be read into one decode state: give one of them")
    else:
        planned = plan_behind(state, recall, *sizes, streams)
        # What is in front takes up no place of the embedding.
        own = (planned.positions - planned.state["ahead"]).clamp(min=0)  # padding may stand before the first
        after = {"positions": planned.positions}
        streams["memories"] = recall
    streams["positions"], streams["cache"] = own, planned.cache
    if planned.state["recalled"] is not None:
        streams["recalled"] = planned.state["recalled"]
    return planned, after
