"""What a call of a model asks for beside its inputs: upstream's `return_...` arguments, and how often layers run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from variform.dialects.x_transformers.errors import InputError

EXIT = 0.9
"""Upstream's probability of having left at which tokens are let out of loops."""


@dataclass(frozen=True)
class Asked:
    """The answers that a call is to give, by upstream's names.

    Args:
        return_embeddings: the hidden states in place of the logits.
        return_logits_and_embeddings: both.
        return_intermediates: (answer, `LayerIntermediates`).
        return_embeddings_and_intermediates: (hidden states, `LayerIntermediates`).
        return_logit_entropies: the entropy of each distribution, among the intermediates.
        return_next_embed_pred: (answer, (predicted features, embedded tokens)).
        return_attn: (answer, the attention weights of each layer).
        return_attn_z_loss: the z-loss on attention scores, among the intermediates.
        attn_z_loss_weight: its factor; the model's when None.
        recycle_steps: passes of a recycling model.
        looped_steps: passes of a looped model, all of them.
        max_looped_steps: most passes of a looped model.
        looped_pred_all_logits: the logits of each pass, among the intermediates; in training by default.
        looped_inference: let tokens out by the exit gate.
        looped_exit_prob_threshold: the probability of having left at which they are let out.
        to_logits_kwargs: keywords for a module that was given as `to_logits`.
    """

    return_embeddings: bool = False
    return_logits_and_embeddings: bool = False
    return_intermediates: bool = False
    return_embeddings_and_intermediates: bool = False
    return_logit_entropies: bool = False
    return_next_embed_pred: bool = False
    return_attn: bool = False
    return_attn_z_loss: bool = False
    attn_z_loss_weight: float | None = None
    recycle_steps: int | None = None
    looped_steps: int | None = None
    max_looped_steps: int | None = None
    looped_pred_all_logits: bool | None = None
    looped_inference: bool = False
    looped_exit_prob_threshold: float = EXIT
    to_logits_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def records(self) -> bool:
        """Whether more than the answer is to be kept of the way there."""
        return self.gives_intermediates or self.return_attn or self.return_next_embed_pred

    @property
    def gives_intermediates(self) -> bool:
        """Whether the intermediates are returned."""
        asked = self.return_intermediates or self.return_embeddings_and_intermediates
        return asked or self.return_logit_entropies or self.return_attn_z_loss

    @property
    def holds_mems(self) -> bool:
        """Whether memories are returned among the intermediates, and not beside the answer."""
        return self.return_intermediates or self.return_logit_entropies or self.return_attn_z_loss

    def check(self, draft: Any) -> None:
        """Refuse what the model does not have.

        Raises:
            InputError: naming the argument.
        """
        heads = draft.heads
        if self.return_next_embed_pred and not heads.add_continuous_pred_head:
            raise InputError("return_next_embed_pred needs a model built with add_continuous_pred_head=True")
        if self.recycle_steps is not None and not draft.recycling:
            raise InputError("recycle_steps needs a model built with recycling=True")
        looping = (self.looped_steps, self.max_looped_steps, self.looped_pred_all_logits)
        if not draft.looped and (self.looped_inference or any(value is not None for value in looping)):
            raise InputError("arguments of loops need a model built with looped=True")
        if self.looped_steps is not None and self.max_looped_steps is not None:
            raise InputError("looped_steps and max_looped_steps both say how often layers run; choose one")
        leaves = self.looped_inference and self.looped_steps is None
        if self.looped_exit_prob_threshold != EXIT and not leaves:
            raise InputError(
                "looped_exit_prob_threshold has no effect without looped_inference=True, or on looped_steps"
            )
        if self.attn_z_loss_weight is not None and not self.return_attn_z_loss:
            raise InputError("attn_z_loss_weight has no effect without return_attn_z_loss=True")
        if heads.return_only_embed and (self.return_logits_and_embeddings or self.return_logit_entropies):
            raise InputError("the model was built with return_only_embed=True, and has no logits")
        hides = self.return_embeddings or self.return_embeddings_and_intermediates
        asks = "return_logit_entropies" if self.return_logit_entropies else "to_logits_kwargs"
        if (self.return_logit_entropies or self.to_logits_kwargs) and hides and not self.return_logits_and_embeddings:
            raise InputError(f"{asks} needs the logits, and embeddings were asked for in their place")

    @property
    def passes(self) -> int | None:
        """How often layers run; None for the model's own number."""
        for asked in (self.recycle_steps, self.looped_steps, self.max_looped_steps):
            if asked is not None:
                return asked
        return None

    @property
    def exit(self) -> float | None:
        """The probability at which a token is let out of loops; None for never."""
        return self.looped_exit_prob_threshold if self.looped_inference and self.looped_steps is None else None


ASKED = tuple(f.name for f in fields(Asked))
"""The names of all of them."""


def taken(arguments: dict[str, Any], **given: Any) -> Asked:
    """What a call asks for; its names are taken out of `arguments`."""
    return Asked(**given, **{name: arguments.pop(name) for name in ASKED if name in arguments})
