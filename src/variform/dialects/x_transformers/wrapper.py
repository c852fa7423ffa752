"""`TransformerWrapper`: tokens in, logits out, around any stack of this dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.dialects.x_transformers.asked import Asked, taken
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.attention_module import clip_stack, muon_weights_of
from variform.dialects.x_transformers.beside import Lent, heads_in_order
from variform.dialects.x_transformers.cache import Cache, Steps, cache_of, over_all
from variform.dialects.x_transformers.call import (
    MODEL_CALL,
    attention_mask,
    check_condition,
    check_context,
    check_context_places,
    check_mask,
    documents,
    injected,
    placing,
    refuse_call,
    two_way,
)
from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.intermediates import LayerIntermediates, Recorder, recording
from variform.dialects.x_transformers.memory import memories_of
from variform.dialects.x_transformers.model import ModelDraft, read_model, stack_path
from variform.dialects.x_transformers.outputs import Answers, answered
from variform.dialects.x_transformers.read import resolved
from variform.dialects.x_transformers.reorder import takes_orders
from variform.dialects.x_transformers.views import AroundLayers
from variform.parts.memories import Memories
from variform.stack.model import Transformer


class TransformerWrapper(AroundLayers):
    """A language model around `attn_layers`, described by upstream's keywords.

    What is built is a model of the core, `native`, which holds the very stack that was passed in; `spec` is its full
    description.

    Shapes:
        x: [B, L] token ids -> [B, L, num_tokens] logits

    Args:
        num_tokens: number of different tokens.
        max_seq_len: longest sequence, where positions are learned.
        attn_layers: an `Encoder`, `Decoder` or other stack of this dialect.
        **keywords: see `variform.dialects.x_transformers.model.MODEL`.

    Raises:
        KeywordError: unknown or unsupported keywords, and values that do not fit; all at once.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        draft = read_model(type(self).__name__, keywords)
        layers: AttentionLayers = keywords["attn_layers"]
        spec = resolved(draft.spec(layers), keywords)
        self._hold(build(spec, ready={stack_path(draft): layers.native}), layers, draft)

    def _hold(self, native: Transformer, layers: AttentionLayers, draft: ModelDraft) -> None:
        self._hold_native(native, layers)
        self.draft = draft
        self.num_tokens = draft.num_tokens
        self.max_seq_len = draft.max_seq_len
        self.max_mem_len = draft.max_mem_len
        self.shift_mem_down = draft.shift_mem_down
        self.emb_dim = draft.emb_dim or layers.dim
        self.looped = draft.looped
        self.recycling = draft.recycling
        self.num_memory_tokens = draft.num_memory_tokens or 0
        self.output_is_log_prob = draft.heads.mixture_of_softmax
        self.add_continuous_pred_head = draft.heads.add_continuous_pred_head

    @classmethod
    def around(cls, native: Transformer, layers: AttentionLayers, draft: ModelDraft) -> TransformerWrapper:
        """The wrapper of a model that is built already."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper._hold(native, layers, draft)
        return wrapper

    @property
    def can_cache_kv_outside_max_seq_len(self) -> bool:
        """Whether nothing but the caller bounds the length: there are no absolute positions."""
        return self.native.max_seq_len is None

    def attn_qk_clip_(self, intermediates: LayerIntermediates, tau: float = 100.0) -> None:
        """Scale the maps of queries and keys down so that no score of a call is above `tau` (arXiv:2507.20534)."""
        clip_stack(self.attn_layers.native, intermediates.attn_intermediates, tau)

    def muon_parameters(self) -> list[Tensor]:
        """The weights that the Muon optimiser is for: of values, output maps and feedforwards."""
        return muon_weights_of(self.attn_layers.native)

    @takes_orders
    def forward(
        self,
        x: Tensor,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        *,
        mask: Tensor | None = None,
        pos: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
        excise_prepend_embeds: bool = False,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        self_attn_kv_mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        sum_embeds: Tensor | None = None,
        condition: Tensor | None = None,
        context_pos: Tensor | None = None,
        in_attn_cond: Tensor | None = None,
        prefix_attn_len: int | Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        mem_masks: Sequence[Tensor | None] | None = None,
        return_mems: bool = False,
        detach_mems: bool = True,
        cache: LayerIntermediates | None = None,
        input_not_include_cache: bool | None = None,
        cache_age: int = 1,
        **more: Any,
    ) -> Any:
        """Run the model.

        Args:
            x: token ids.
            return_embeddings: the hidden states in place of the logits.
            return_logits_and_embeddings: both.
            mask: [B, L] bool, True at real tokens.
            pos: [L] or [B, L] positions; or features, [L, emb_dim] or [B, L, emb_dim], in place of the absolute ones.
            prepend_embeds: [B, P, emb_dim] features before the tokens.
            prepend_mask: [B, P] bool, True at real features.
            excise_prepend_embeds: leave the features in front out of the result.
            context: [B, Lc, dim] for cross attention.
            context_mask: [B, Lc] bool, True at real tokens of the context.
            attn_mask: [L, L], [H, L, L] or [B, H, L, L] bool, True = may attend; L counts the features in front
                and may count memory tokens, and keys those of `mems`.
            attn_bias: the same of floats, added to the scores of self-attention.
            self_attn_kv_mask: [B, L] bool, keys that may be attended; L counts the features in front.
            seq_start_pos: [B] where each row begins, of rows padded on the left.
            embed_ids: {name: [B, L]} the further ids of `embed_num_tokens`.
            sum_embeds: [B, L, emb_dim] features that are added to the tokens'.
            context_pos: [Lc] or [B, Lc] positions of the context, by which rotary cross attention rotates.
            condition: [B, C] or [B, L, C] for adaptive parts; L counts the features in front.
            in_attn_cond: [B, L, dim] or [B, dim], added to what every sublayer reads; L counts the features in front.
            prefix_attn_len: how many tokens at the beginning are seen by all, of a `PrefixDecoder`; [B] for each row.
            mems: [B, M, dim] a self-attention, which read them besides: what an earlier call gave with `return_mems`.
            mem_masks: [B, M] bool, True at what is remembered; a list has one for each self-attention.
            return_mems: (answer, `mems` for the next call), or among the intermediates: the last `max_mem_len` inputs
                of each self-attention.
            detach_mems: as constants.
            cache: what an earlier call gave with `return_intermediates=True`; the answers are those of what it has not
                read.
            input_not_include_cache: whether x is the new tokens alone, and not all; by default as the model was built.
            cache_age: how many tokens are new, where that is to be checked.
            **more: what is to be returned and how often layers run, see `Asked`; `token_emb_kwargs`, keywords for a
                module that was given as `token_emb`; upstream's other arguments, at their defaults.
        """
        asked = taken(
            more, return_embeddings=return_embeddings, return_logits_and_embeddings=return_logits_and_embeddings
        )
        log_probs, packed = more.pop("return_gumbel_log_probs", False), more.pop("flash_pack_seq_kwargs", None)
        lent = Lent.taken(more)
        options = more.pop("token_emb_kwargs", None) or None
        refuse_call(type(self).__name__, MODEL_CALL, more)
        if options is not None and self.draft.token_emb is None:
            raise InputError("token_emb_kwargs are keywords for a module that was given as token_emb")
        asked.check(self.draft)
        if log_probs and not asked.gives_intermediates:
            raise InputError("return_gumbel_log_probs adds log_probs to the intermediates: return_intermediates=True")
        layers = self.attn_layers
        check_condition(layers, condition)
        check_context_places(layers, context_pos)
        attn_mask = heads_in_order(layers.native, attn_mask, "attn_mask")
        given: dict[str, Any] = {
            "mask": attention_mask(attn_mask, self_attn_kv_mask),
            "context": context,
            "context_mask": context_mask,
            "context_positions": context_pos,
            "prefix": prepend_embeds,
            "prefix_valid": prepend_mask,
            "further_ids": embed_ids or None,
            "embedding_options": options,
            "added": sum_embeds,
            "bias": heads_in_order(layers.native, attn_bias, "attn_bias"),
            "beside": lent.beside(layers.native),
            "condition": condition,
            "injected": injected(in_attn_cond),
            "two_way": two_way(layers, prefix_attn_len, x, pos),
            "passes": asked.passes,
            "exit": asked.exit,
        }
        told = Told(mask, pos, seq_start_pos)
        memories = None
        if mems is not None or mem_masks is not None or return_mems:
            if cache is not None:
                after = "XLAutoregressiveWrapper.generate goes on from mems"
                raise InputError(f"mems and a cache cannot be combined: {after}")
            memories = memories_of(mems, mem_masks, self.max_mem_len, self.shift_mem_down)
        with recording(layers.native) if asked.records else nullcontext() as recorder:
            if cache is None:
                check_context(layers, context)
                self._check(x, mask, prepend_embeds, prepend_mask)
                pairs = None if packed is None else partial(documents, packed, x, attn_mask=attn_mask)
                read = self._read(x, given, told, pairs, memories, recorder)
            else:
                if asked.return_next_embed_pred or packed is not None:
                    name = "return_next_embed_pred" if packed is None else "flash_pack_seq_kwargs"
                    raise InputError(f"{name} is for whole sequences: leave the cache out")
                own = self.draft.input_not_include_cache
                alone = own if input_not_include_cache is None else input_not_include_cache
                steps = Steps(x, cache_of(cache), alone, cache_age, layers.causal, layers.order)
                read = Read(*steps.read(self.native, {**given, "watch": recorder}, *told), None)
        kept = [] if read.memories is None else [*(read.memories.detached() if detach_mems else read.memories).features]
        if recorder is not None:
            recorder.found.cache = None if self.for_one_call else read.after
            recorder.found.mems = kept if return_mems and asked.gives_intermediates else None
        ahead = prepend_embeds.shape[1] if prepend_embeds is not None and excise_prepend_embeds and cache is None else 0
        answers = Answers(self.native, self.draft, pools=layers.encodes)
        answer = answered(answers, read.hidden, read.valid, asked, ahead, recorder, self._z_loss_weight(asked))
        return (answer, kept) if return_mems and not asked.holds_mems else answer

    def _read(
        self,
        x: Tensor,
        given: dict[str, Any],
        told: Told,
        pairs: Callable[..., Tensor] | None,
        memories: Memories | None,
        recorder: Recorder | None,
    ) -> Read:
        """Read whole sequences.

        Args:
            x: token ids.
            given: side inputs of the model.
            told: what the caller says of where tokens stand.
            pairs: the documents of the tokens, by which of them are real.
            memories: of an earlier segment, and how much of this one is kept.
            recorder: who is told of the way.
        """
        layers = self.attn_layers
        positions, valid = placing(layers.causal, x.shape[1], x.device, *told)
        streams = {**given, "positions": positions, "valid": valid}
        if pairs is not None:
            streams["segments"] = pairs(valid)
            streams["positions"] = torch.arange(x.shape[1], device=x.device) if told.pos is None else told.pos
        left: Memories | None = None
        if memories is None:
            hidden = self.native(x, hidden=True, watch=recorder, **streams)
        else:
            memories = memories._replace(compact=False)  # tokens stay where the caller's masks have them
            hidden, left = self.native(x, hidden=True, watch=recorder, memories=memories, **streams)
        after = Cache(x, {name: one for name, one in streams.items() if name != "positions"}, positions, layers.order)
        return Read(hidden, after, over_all(valid, given["prefix"], given["prefix_valid"], x), left)

    def _z_loss_weight(self, asked: Asked) -> float:
        return float(self.draft.attn_z_loss_weight if asked.attn_z_loss_weight is None else asked.attn_z_loss_weight)

    def _check(self, x: Tensor, mask: Tensor | None, prefix: Tensor | None, prefix_mask: Tensor | None) -> None:
        if x.dim() != 2 or x.is_floating_point():
            raise InputError(f"token ids are integers of shape [batch, length], not {x.dtype} {list(x.shape)}")
        longest = self.native.max_seq_len
        if longest is not None and x.shape[1] > longest:
            raise InputError(f"the sequence has {x.shape[1]} tokens, and the absolute positions end at {longest}")
        check_mask("mask", mask, x.shape[0], x.shape[1])
        if prefix_mask is not None and prefix is None:
            raise InputError("prepend_mask was passed without prepend_embeds")


class Told(NamedTuple):
    """What a caller says of where tokens stand.

    Args:
        mask: [B, L] bool, True at real tokens.
        pos: [L] or [B, L] positions.
        start: [B] where each row begins.
    """

    mask: Tensor | None
    pos: Tensor | None
    start: Tensor | None


class Read(NamedTuple):
    """What a call has read.

    Args:
        hidden: [B, L, dim] the hidden states.
        after: what a next call goes on from.
        valid: [B, L] bool, which of them are real; None for all.
        memories: what a next segment attends to; None where nothing was remembered.
    """

    hidden: Tensor
    after: Cache
    valid: Tensor | None
    memories: Memories | None
