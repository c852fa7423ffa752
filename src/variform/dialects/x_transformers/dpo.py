"""`DPO`: learning from preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.table import Route, Table, kept, problems_of, raise_any
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.wrappers.preference import Preference

KEYWORDS: Table = {
    "beta": Route(0.1, kept, types=(int, float)),
    "pad_id": Route(None, kept, types=(int,)),
}


class DPO(nn.Module):
    """Direct preference optimisation of a `TransformerWrapper` (Rafailov et al. 2023, arXiv:2305.18290).

    The reference is a copy of the model as it was, without gradients and always in evaluation. An answer counts by the
    mean over its tokens.

    Shapes:
        preferred_seq, unpreferred_seq: [B, L] token ids -> the loss, a scalar

    Args:
        model: a causal model.
        beta: how closely the model is held to the reference.
        pad_id: what rows are filled up with on the right; it does not count.
        **keywords: none; unknown ones are refused.

    Raises:
        KeywordError: unknown keywords, a model that is not causal.
    """

    def __init__(self, model: nn.Module, *, beta: float = 0.1, pad_id: int | None = None, **keywords: Any) -> None:
        super().__init__()
        raise_any(problems_of(type(self).__name__, KEYWORDS, {"beta": beta, "pad_id": pad_id, **keywords}, KEYWORDS))
        if not isinstance(model, TransformerWrapper):
            raise KeywordError(f"model is a TransformerWrapper, not {type(model).__name__}", path="model")
        if not model.native.causal:
            hint = "build the wrapper around a Decoder"
            raise KeywordError("answers have no probability under layers that see them", path="model", hint=hint)
        if beta <= 0:
            raise KeywordError("must be positive", path="beta", value=beta)
        self.objective = Preference(model, beta, average=True)
        self.beta = beta
        self.pad_id = pad_id

    @property
    def policy_model(self) -> nn.Module:
        """The model that learns."""
        return self.objective.policy

    @property
    def ref_model(self) -> nn.Module:
        """The model as it was."""
        return self.objective.reference

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        return {"policy_model.": self.policy_model, "ref_model.": self.ref_model}

    def forward(
        self,
        preferred_seq: Tensor,
        unpreferred_seq: Tensor,
        *,
        prompt_mask: Tensor,
        preferred_seq_mask: Tensor | None = None,
        unpreferred_seq_mask: Tensor | None = None,
    ) -> Tensor:
        """The mean loss.

        Args:
            preferred_seq: prompts with the better answers.
            unpreferred_seq: the same prompts with the others.
            prompt_mask: [B, L] bool, True at the tokens of the prompt, which do not count.
            preferred_seq_mask: [B, L] bool, True at the tokens that count; by default all but `pad_id`.
            unpreferred_seq_mask: the same for the others.
        """
        if preferred_seq.dim() != 2 or preferred_seq.shape != unpreferred_seq.shape:
            shapes = f"{list(preferred_seq.shape)} and {list(unpreferred_seq.shape)}"
            raise InputError(f"both sequences are token ids of one shape [batch, length]; got {shapes}")
        for name, mask in (
            ("prompt_mask", prompt_mask),
            ("preferred_seq_mask", preferred_seq_mask),
            ("unpreferred_seq_mask", unpreferred_seq_mask),
        ):
            if mask is not None and (mask.dtype != torch.bool or mask.shape != preferred_seq.shape):
                raise InputError(
                    f"{name} is bool of shape {list(preferred_seq.shape)}; got {mask.dtype} {list(mask.shape)}"
                )
        counts = [
            self._counts(ids, mask, prompt_mask)
            for ids, mask in ((preferred_seq, preferred_seq_mask), (unpreferred_seq, unpreferred_seq_mask))
        ]
        with in_upstream_terms():
            loss: Tensor = self.objective(preferred_seq, unpreferred_seq, *counts)
        return loss

    def _counts(self, ids: Tensor, mask: Tensor | None, prompt_mask: Tensor) -> Tensor:
        if mask is None and self.pad_id is not None:
            mask = ids != self.pad_id
        return ~prompt_mask if mask is None else ~prompt_mask & mask
