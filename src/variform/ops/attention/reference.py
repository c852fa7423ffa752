"""The oracle: attention written out, in any dtype, with every option of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from variform.ops.attention.call import Call
from variform.ops.learned_scores import AddedScores
from variform.ops.scores import ScoreMod
from variform.ops.weightings import Normaliser, softmax_or

__all__ = ["ReferenceBackend", "Scored", "reference", "reference_scores", "reference_weights", "scored"]


def reference(call: Call) -> Tensor:
    """Attention in plain operations, holding all scores.

    Shapes: -> `[B, H, Lq, Dv]`.
    """
    weights, products = _weights(call)
    if call.dropout:
        weights = functional.dropout(weights, call.dropout)
    if call.weights is not None:
        weights = call.weights.after(weights, products)
    return weights @ call.expanded()[1]


def reference_weights(call: Call) -> Tensor:
    """The attention weights before dropout; rows that attend to nothing are zero.

    Shapes: -> `[B, H, Lq, Lk]`.
    """
    weights, products = _weights(call)
    return weights if call.weights is None else call.weights.after(weights, products)


def reference_scores(call: Call, mask: Tensor | None) -> Tensor:
    """What weights are made of: scaled and modified scores, -inf where a query may not attend.

    Shapes: -> `[B, H, Lq, Lk]`.

    Args:
        call: the request.
        mask: its `full_mask()`.
    """
    scores = (call.q @ call.expanded()[0].transpose(-1, -2)) * call.softmax_scale
    return scored(scores, call.scores, call.weights, mask, *call.positions()).masked


def _weights(call: Call) -> tuple[Tensor, Tensor]:
    scores = (call.q @ call.expanded()[0].transpose(-1, -2)) * call.softmax_scale
    mask = call.full_mask()
    if mask is None and not call.scores and call.weights is None:
        return torch.softmax(scores, dim=-1), scores
    found = scored(scores, call.scores, call.weights, mask, *call.positions())
    # A row of -inf is NaN under softmax, in backward too; such rows are replaced before and zeroed after.
    empty = (found.masked == -torch.inf).all(dim=-1, keepdim=True)
    weights = softmax_or(call.weights, found.masked.masked_fill(empty, 0.0), found.bare)
    return weights.masked_fill(empty, 0.0), found.products


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores on their way to weights, each `[B, H, Lq, Lk]`.

    Args:
        products: scaled products of queries and keys, with scores that were added to them first.
        bare: modified, before masks.
        masked: -inf where a query may not attend, and modified by what goes by that.
    """

    products: Tensor
    bare: Tensor
    masked: Tensor


def scored(
    scores: Tensor,
    modifiers: Sequence[ScoreMod],
    normaliser: Normaliser | None,
    mask: Tensor | None,
    q_pos: Tensor,
    k_pos: Tensor,
) -> Scored:
    """Modify and mask scores: modifiers, masks, modifiers that come after masks.

    Shapes: scores `[B, H, Lq, Lk]`, mask as of `Call.full_mask`.
    """
    products = scores
    for modifier in modifiers:
        if not modifier.is_late:
            scores = modifier.apply_seen(scores, mask, q_pos, k_pos)
            products = scores if type(modifier) is AddedScores else products
    bare = scores
    if normaliser is not None:
        scores = normaliser.before(scores)
    for modifier in modifiers:
        if modifier.is_late:
            scores = modifier.apply_seen(scores, mask, q_pos, k_pos)
    return Scored(products, bare, scores if mask is None else scores.masked_fill(~mask, -torch.inf))


class ReferenceBackend:
    """Plain operations; computes every call, in O(Lq * Lk) memory."""

    name = "reference"
    weighs = True

    def refuses(self, call: Call, training: bool) -> str | None:
        """Never."""
        return None

    def advantage(self, call: Call, training: bool) -> str | None:
        """None: it is the last resort."""
        return None

    def run(self, call: Call) -> Tensor:
        """Compute the call."""
        return reference(call)
