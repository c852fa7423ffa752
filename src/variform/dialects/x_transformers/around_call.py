"""What a call of a wrapper around other inputs than plain tokens remembers and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from variform.dialects.x_transformers.intermediates import LayerIntermediates
from variform.dialects.x_transformers.memory import memories_of
from variform.stack.model import Transformer


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
        masks: [B, M] bool, True at what is to be remembered; the same for all, given once or for each.
        keeps: whether this segment is to be remembered.
        limit: the most inputs that are.
    """

    mems: Sequence[Tensor] | None
    masks: Sequence[Tensor] | Tensor | None
    keeps: bool
    limit: int

    @property
    def anything(self) -> bool:
        """Whether there is something to attend to or to keep."""
        return self.mems is not None or self.masks is not None or self.keeps

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
        if not self.anything:
            hidden: Tensor = model(inputs, hidden=True, **streams)
            return hidden, None
        before = memories_of(self.mems, self.masks, self.limit, 0)._replace(compact=False)
        hidden, after = model(inputs, hidden=True, memories=before, **streams)
        if not self.keeps:
            return hidden, None
        count = min(self.limit, hidden.shape[1] + added)  # upstream keeps this segment's alone
        return hidden, tuple(one[:, one.shape[1] - count :].detach() for one in after.features)
