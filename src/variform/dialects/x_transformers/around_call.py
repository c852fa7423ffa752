"""What a call of a wrapper around other inputs than plain tokens remembers and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.intermediates import LayerIntermediates
from variform.parts.memories import Memories
from variform.stack.model import Transformer

AROUND_CALL: dict[str, Any] = {}
"""Arguments of the forward methods that are known and not supported, with upstream's defaults."""


class Found(NamedTuple):
    """What a call gave.

    Args:
        hidden: [B, L, dim] the hidden states, of the features in front too.
        valid: [B, L] bool, which of them are real; None for all.
        mems: what each attention read of this segment, where it was asked for.
        told: what was made on the way, where that was asked for.
        whole: whether all of it was, and not the attention weights alone.
    """

    hidden: Tensor
    valid: Tensor | None
    mems: tuple[Tensor, ...] | None
    told: LayerIntermediates | None
    whole: bool

    def answered(self, out: Any) -> Any:
        """The answer, with one thing beside it that was asked for: the intermediates, the memories or the weights."""
        if self.told is not None and self.whole:
            return out, self.told
        if self.mems is not None:
            return out, self.mems
        if self.told is not None:
            return out, tuple(one.post_softmax_attn for one in self.told.attn_intermediates)
        return out


class Remembers(NamedTuple):
    """What a call attends to of an earlier segment, and keeps for the next.

    Args:
        mems: [B, M, dim], what each attention read; None for nothing.
        masks: [B, M] bool, True at what is to be remembered.
        keeps: whether this segment is to be remembered.
        limit: the most inputs that are.
    """

    mems: Sequence[Tensor] | None
    masks: Sequence[Tensor] | Tensor | None
    keeps: bool
    limit: int

    def run(
        self, model: Transformer, inputs: Tensor, streams: Mapping[str, Any], added: int
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The hidden states, and what is kept.

        Args:
            model: the model.
            inputs: of this segment.
            streams: its side inputs.
            added: how many tokens the model adds of its own.
        """
        if self.mems is None and not self.keeps:
            hidden: Tensor = model(inputs, hidden=True, **streams)
            return hidden, None
        before = Memories(self.limit, 0, tuple(self.mems or ()), one_mask(self.masks), compact=False)
        hidden, after = model(inputs, hidden=True, memories=before, **streams)
        if not self.keeps:
            return hidden, None
        count = min(self.limit, hidden.shape[1] + added)  # upstream keeps this segment's alone
        return hidden, tuple(one[:, one.shape[1] - count :].detach() for one in after.features)


def one_mask(masks: Sequence[Tensor] | Tensor | None) -> Tensor | None:
    """The mask of memories that all attentions have.

    Raises:
        InputError: they have several.
    """
    if masks is None or isinstance(masks, Tensor):
        return masks
    first, *rest = masks
    if not all(torch.equal(first, other) for other in rest):
        raise InputError("mem_masks are the same for all attentions: what is remembered of a token, all remember")
    return first
