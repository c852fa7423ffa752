"""From hidden states to what upstream's `TransformerWrapper` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from variform.dialects.x_transformers.asked import Asked
from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.intermediates import (
    LayerIntermediates,
    Recorder,
    attention_z_loss,
    looped_stack,
)
from variform.parts.head.module import ModuleHead
from variform.parts.head.pooled import AttentionPoolHead, PooledHead
from variform.parts.head.readouts import NextEmbeddingHead, Readouts, SqueezedHead
from variform.parts.kinds import Head
from variform.wrappers.entropy import entropies

if TYPE_CHECKING:
    from variform.dialects.x_transformers.model import ModelDraft
    from variform.stack.model import Transformer


class Answers:
    """The heads of a model, by what upstream calls them.

    Args:
        model: the model of the core.
        draft: the keywords it was described by.
        pools: whether pooled tokens, where there are any, are the answer: upstream's rule for all but decoders.
    """

    def __init__(self, model: Transformer, draft: ModelDraft, pools: bool) -> None:
        head = model.head
        heads = [head.main, *head.further] if isinstance(head, Readouts) else [] if head is None else [head]
        self.pool = next((one for one in heads if isinstance(one, AttentionPoolHead)), None)
        self.next_embedding = next((one for one in heads if isinstance(one, NextEmbeddingHead)), None)
        rest = [one for one in heads if one is not self.pool and one is not self.next_embedding]
        main: Any = rest[0] if rest else None
        self.pooled = main if isinstance(main, PooledHead) else None
        self.logits: Head | None = main if self.pooled is None else self.pooled.head
        self.model = model
        self.draft = draft
        self.pools = pools

    def features(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """What the logits are of: the hidden states, their mean, or a single class token's."""
        if self.pooled is not None:
            return self.pooled.pooled(hidden, {"valid": valid})
        return hidden.squeeze(1) if self.draft.use_cls_token and hidden.shape[1] == 1 else hidden

    def of(self, x: Tensor, arguments: Mapping[str, Any]) -> Any:
        """The logits; of several heads, a tuple."""
        head = self.logits
        if head is None:
            raise InputError("the model was built with return_only_embed=True, and has no logits")
        if arguments:
            inner = head.head if isinstance(head, SqueezedHead) else head
            if not isinstance(inner, ModuleHead):
                raise InputError("to_logits_kwargs are for a module that was given as to_logits")
            answer = inner.module(x, **arguments)
            return answer.squeeze(-1) if inner is not head else answer
        logits = head(x, {})
        count = self.draft.heads.num_output_heads
        if count == 1:
            return logits
        parts = logits.chunk(count, -1)
        return tuple(part.squeeze(-1) if self.draft.heads.squeeze_out_last_dim else part for part in parts)


def answered(
    answers: Answers,
    hidden: Tensor,
    valid: Tensor | None,
    asked: Asked,
    ahead: int,
    recorder: Recorder | None,
    weight: float,
) -> Any:
    """What a call returns.

    Args:
        answers: the heads.
        hidden: what the stacks gave.
        valid: [B, L] bool, False at padding, of all that was read; None for none.
        asked: what is to be returned.
        ahead: features in front that are left out of the result.
        recorder: of the way there, where it is asked for.
        weight: factor of the z-loss.
    """
    found = LayerIntermediates() if recorder is None else recorder.found
    if found.last_layer_hiddens is None:
        found.last_layer_hiddens = hidden
    x = answers.features(hidden, valid)
    if answers.pool is not None and (asked.gives_intermediates or answers.pools):
        found.attn_pooled_tokens = answers.pool(hidden, {"valid": valid})
    hides = asked.return_embeddings or asked.return_embeddings_and_intermediates
    only_features = (hides or answers.draft.heads.return_only_embed) and not asked.return_logits_and_embeddings
    logits = None if only_features else answers.of(x, asked.to_logits_kwargs)
    if ahead:
        x = x[:, ahead:]
        logits = tuple(one[:, ahead:] for one in logits) if isinstance(logits, tuple) else logits
        logits = logits[:, ahead:] if isinstance(logits, Tensor) else logits
    out: Any = x if only_features else (logits, x) if asked.return_logits_and_embeddings else logits
    if found.attn_pooled_tokens is not None and answers.pools and out is logits:
        found.logits, out = logits, found.attn_pooled_tokens
    if asked.return_next_embed_pred:
        assert answers.next_embedding is not None
        out = (out, (answers.next_embedding(x, {}), found.initial_embeds))
    if asked.return_logit_entropies:
        heads = logits if isinstance(logits, tuple) else (logits,)
        told = tuple(map(entropies, heads))
        found.logit_entropies = told if isinstance(logits, tuple) else told[0]
    if asked.return_attn_z_loss:
        assert recorder is not None
        found.attn_z_loss = attention_z_loss(found.attn_intermediates, recorder.valid, weight)
    if recorder is not None and answers.draft.looped:
        _tell_loops(answers, recorder, asked)
    if asked.return_embeddings_and_intermediates and not asked.return_logits_and_embeddings:
        out = out, found
    if asked.holds_mems:
        return out, found
    if asked.return_attn:
        return out, [one.post_softmax_attn for one in found.attn_intermediates]
    return out


def _tell_loops(answers: Answers, recorder: Recorder, asked: Asked) -> None:
    """What the gate says after each pass, the logits of each, and which pass each answer is of."""
    loop, draft, found = looped_stack(answers.model), answers.draft, recorder.found
    assert loop is not None
    if draft.memory_tokens_interspersed_every is not None:
        raise InputError("the passes of loops are not told of models with interspersed memory tokens")
    added = (draft.num_memory_tokens or 0) + (draft.num_cls_tokens if draft.use_cls_token else 0)
    passes = [one[:, added:] for one in recorder.passes]
    gates = [loop.gate(one) for one in passes]
    found.exit_logits = gates
    wanted = answers.model.training if asked.looped_pred_all_logits is None else asked.looped_pred_all_logits
    found.all_pred_logits = [answers.of(one, asked.to_logits_kwargs) for one in passes] if wanted else []
    last = torch.full_like(gates[0][..., 0], len(gates) - 1, dtype=torch.long)
    found.exit_indices = last if asked.exit is None else exits(gates, asked.exit)


def exits(gates: list[Tensor], threshold: float) -> Tensor:
    """The pass in which each token's probability of having left reaches the threshold, the last at the latest.

    Shapes:
        gates: [B, L, 1] a pass -> [B, L] integers
    """
    logits = torch.stack(gates[:-1], -1) if len(gates) > 1 else gates[0].unsqueeze(-1)[..., :0]
    stay = F.logsigmoid(-logits).cumsum(-1)
    left = (1 - stay.exp()) >= threshold
    return (~left).sum(-1).squeeze(-1)
