"""The oracle: attention written out, in any dtype, with every option of a call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from variform.ops.attention.call import Call

__all__ = ["ReferenceBackend", "reference", "reference_scores", "reference_weights"]


def reference(call: Call) -> Tensor:
    """Attention in plain operations, holding all scores.

    Shapes: -> `[B, H, Lq, Dv]`.
    """
    weights = reference_weights(call)
    if call.dropout:
        weights = functional.dropout(weights, call.dropout)
    return weights @ call.expanded()[1]


def reference_weights(call: Call) -> Tensor:
    """The attention weights before dropout; rows that attend to nothing are zero.

    Shapes: -> `[B, H, Lq, Lk]`.
    """
    mask = call.full_mask()
    scores = reference_scores(call, mask)
    if not call.scores and mask is None:
        return torch.softmax(scores, dim=-1)
    # A row of -inf is NaN under softmax, in backward too; such rows are replaced before and zeroed after.
    empty = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)


def reference_scores(call: Call, mask: Tensor | None) -> Tensor:
    """What the softmax is taken of: scaled and modified scores, -inf where a query may not attend.

    Shapes: -> `[B, H, Lq, Lk]`.

    Args:
        call: the request.
        mask: its `full_mask()`.
    """
    scores = (call.q @ call.expanded()[0].transpose(-1, -2)) * call.softmax_scale
    if call.scores:
        positions = call.positions()
        for modifier in call.scores:
            scores = modifier.apply(scores, *positions)
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


class ReferenceBackend:
    """Plain operations; computes every call, in O(Lq * Lk) memory."""

    name = "reference"

    def refuses(self, call: Call, training: bool) -> str | None:
        """Never."""
        return None

    def advantage(self, call: Call, training: bool) -> str | None:
        """None: it is the last resort."""
        return None

    def run(self, call: Call) -> Tensor:
        """Compute the call."""
        return reference(call)
