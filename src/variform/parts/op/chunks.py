"""Attention in steps, where tokens come in chunks: what is known of scores and sums, and which keys are hidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from variform.core.dims import Shape, shape_text
from variform.errors import ShapeError
from variform.parts.flows import MASKED, Flow, each_token
from variform.parts.kinds import Op, Streams

NOT_CAUSAL = (
    "later tokens count here: a program that is not causal cannot decode; give the weighted sum causal=True, or add an "
    "offset to the scores whose values mask the future, as get_alibi(mask='causal') does"
)


def scores_flow(inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
    """What is known of scores of queries and keys.

    Raises:
        ShapeError: the keys are tokens and the queries are not; or both are not rotated alike.
    """
    q, k = inputs
    if not q.rows or not (k.rows or k.held):
        raise ShapeError(f"queries {shape_text(q.shape)} and keys {shape_text(k.shape)} are not token by token")
    if q.turned != k.turned:
        raise ShapeError(
            "queries and keys are not rotated alike, so that their scores depend on how long the sequence is; rotate "
            "both, as many features each, with tables of one length"
        )
    return (Flow(outputs[0], q.length),)


def sum_flow(
    op: Op, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...], causal: bool, enough: float | None, zeros: bool
) -> tuple[Flow, ...]:
    """What is known of a weighted sum, and of the weights where they are given back.

    Args:
        op: the weighted sum.
        inputs: the values and the scores.
        outputs: the shapes of the results.
        causal: whether it hides later keys by itself.
        enough: how low a mask in the scores must be to hide a key; None where only zeros hide it.
        zeros: whether scores of 0 hide a key; under a softmax they count.

    Raises:
        ShapeError: nothing hides later keys.
    """
    v, scores = inputs
    if not scores.pairs:
        return each_token(op, inputs, outputs)
    if v.turned is not None or not v.rows:
        return each_token(op, (v, Flow(scores.shape[:-1], v.length)), outputs)
    if not (causal or (zeros and scores.zeroed) or (enough is not None and scores.mask <= enough)):
        raise ShapeError(NOT_CAUSAL)
    found = [Flow(shape, v.length) for shape in outputs]
    return (found[0], *(replace(weights, zeroed=True) for weights in found[1:]))


def hidden_keys(streams: Streams, queries: int, causal: bool) -> Tensor | None:
    """True where a query of the chunk does not see a slot, broadcastable to [B, H, Lq, Lk]; None where it sees all.

    Args:
        streams: of the call.
        queries: tokens of the chunk.
        causal: hide later keys, beside slots that are not filled.
    """
    cache: Mapping[str, Any] = streams["cache"]
    valid: Tensor | None = cache["valid"]
    hidden = None if valid is None else ~valid[:, None, None]
    if not causal or (queries == 1 and not cache["moved"]):
        return hidden  # every filled slot lies at or before the one new token
    q, k = streams["positions"], cache["positions"]
    later = _rows(k).unsqueeze(2) > _rows(q).unsqueeze(3)
    return later if hidden is None else later | hidden


def _rows(positions: Tensor) -> Tensor:
    """[L] or [B, L] -> [1 or B, 1, L]."""
    return positions.expand(1, -1).unsqueeze(1) if positions.dim() == 1 else positions.unsqueeze(1)


def without(weights: Tensor, hidden: Tensor | None) -> Tensor:
    """Weights of 0 for hidden keys; also where a row has nothing to see yet."""
    return weights if hidden is None else weights.masked_fill(hidden, 0.0)


def lowered(scores: Tensor, hidden: Tensor | None) -> Tensor:
    """Scores with the lowest number of their type for hidden keys."""
    return scores if hidden is None else scores.masked_fill(hidden, torch.finfo(scores.dtype).min)


__all__ = ["MASKED", "hidden_keys", "lowered", "scores_flow", "sum_flow", "without"]
