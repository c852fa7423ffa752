"""What the wrappers of other inputs than plain tokens have in common: keywords, the model of the core, its call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.around_call import Found, Remembers
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.beside import heads_in_order
from variform.dialects.x_transformers.cache import Cache, Steps, cache_of, over_all
from variform.dialects.x_transformers.call import (
    attention_mask,
    check_condition,
    check_context,
    check_mask,
    injected,
    placing,
    refuse_call,
)
from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.intermediates import LayerIntermediates, recording
from variform.dialects.x_transformers.read import resolved
from variform.dialects.x_transformers.reorder import takes_orders
from variform.dialects.x_transformers.surroundings import broken, position_of, rules_around
from variform.dialects.x_transformers.table import REQUIRED, Route, Table, apply_all, kept, problems_of, put, raise_any
from variform.dialects.x_transformers.views import AroundLayers
from variform.errors import Problem
from variform.parts.norm.norms import LayerNorm
from variform.stack.condition import condition_size
from variform.stack.model import Transformer
from variform.stack.registers import RegisterStack


@dataclass
class AroundDraft:
    """A model on its way to a spec."""

    max_seq_len: int | None = None
    emb_dropout: float = 0.0
    post_emb_norm: bool = False
    use_abs_pos_emb: bool = True
    scaled_sinu_pos_emb: bool = False
    num_memory_tokens: int | None = None
    max_mem_len: int = 0
    problems: list[Problem] = field(default_factory=list)

    def spec(self, layers: AttentionLayers) -> Spec:
        """The model around a stack."""
        stack = layers.spec
        position = position_of(self, layers, layers.dim)
        return Transformer.spec(
            dim=layers.dim,
            causal=stack["causal"],
            dim_condition=condition_size(stack),
            max_seq_len=None if position is None else self.max_seq_len,
            stacks=[
                RegisterStack.spec(stack=stack, count=self.num_memory_tokens, std=1.0)
                if self.num_memory_tokens
                else stack
            ],
            **self.ends(layers.dim, position),
        )

    def ends(self, dim: int, position: Spec | None) -> dict[str, Any]:
        """The slots `embedding` and `head` of the model, and its `vocab_size`."""
        raise NotImplementedError

    def norm(self) -> Spec | None:
        """The norm on the embedded inputs."""
        return LayerNorm.spec(bias=False) if self.post_emb_norm else None

    @property
    def stack_path(self) -> str:
        """Where in the spec the stack of `attn_layers` stands."""
        return "stacks.0.stack" if self.num_memory_tokens else "stacks.0"

    def check(self, layers: AttentionLayers) -> list[Problem]:
        """The rules that concern several keywords."""
        return broken(self, rules_around(self, layers, layers.dim))


AROUND: Table = {
    "attn_layers": Route(REQUIRED, kept, types=(AttentionLayers,)),
    "emb_dropout": Route(0.0, put("emb_dropout"), types=(int, float)),
    "use_abs_pos_emb": Route(True, put("use_abs_pos_emb")),
    "scaled_sinu_pos_emb": Route(False, put("scaled_sinu_pos_emb")),
    "num_memory_tokens": Route(None, put("num_memory_tokens"), types=(int,)),
    "max_mem_len": Route(0, put("max_mem_len"), types=(int,)),
}
"""Keywords that all of these wrappers have."""


class AroundWrapper(AroundLayers):
    """A model around `attn_layers` whose inputs or answers are not plain tokens.

    What is built is a model of the core, `native`, which holds the very stack that was passed in.
    """

    embeds: ClassVar[bool] = False
    table: ClassVar[Table]
    draft: ClassVar[type[AroundDraft]]

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        layers, table = keywords.get("attn_layers"), self.table
        raise_any(problems_of(type(self).__name__, table, keywords, table))
        assert isinstance(layers, AttentionLayers)
        draft = self.draft()
        apply_all(draft, table, keywords)
        raise_any(draft.check(layers))
        native: Transformer = build(resolved(draft.spec(layers)), ready={draft.stack_path: layers.native})
        self._hold_native(native, layers)
        self.max_seq_len = draft.max_seq_len
        self.max_mem_len = draft.max_mem_len
        self.num_memory_tokens = draft.num_memory_tokens or 0
        self._hold(draft)

    def _hold(self, draft: Any) -> None:
        """Keep what the call needs of the draft."""

    @takes_orders
    def hidden(
        self,
        inputs: Tensor,
        *,
        mask: Tensor | None = None,
        pos: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        self_attn_kv_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        condition: Tensor | None = None,
        in_attn_cond: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        mem_masks: Sequence[Tensor] | None = None,
        return_mems: bool = False,
        return_intermediates: bool = False,
        return_attn: bool = False,
        cache: LayerIntermediates | None = None,
        input_not_include_cache: bool = False,
        streams: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Found:
        """The hidden states.

        Args:
            inputs: what the embedding takes.
            mask: [B, L] bool, True at real inputs.
            pos: [L] or [B, L] positions.
            seq_start_pos: [B] where each row begins, of rows padded on the left.
            prepend_embeds: [B, P, dim] features before the inputs.
            prepend_mask: [B, P] bool, True at real features.
            context: [B, Lc, dim] for cross attention.
            context_mask: [B, Lc] bool, True at real tokens of the context.
            attn_mask: [L, L], [H, L, L] or [B, H, L, L] bool, True = may attend; L counts the features in front.
            self_attn_kv_mask: [B, L] bool, keys that may be attended; L counts the features in front
                and may count memory tokens, and keys those of `mems`.
            attn_bias: the same as attn_mask of floats, added to the scores of self-attention.
            condition: [B, C] or [B, L, C] for adaptive parts; L counts the features in front.
            in_attn_cond: [B, L, dim] or [B, dim], added to what every sublayer reads; L counts the features in front.
            mems: what each attention read of an earlier segment, [B, M, dim], as `return_mems` gave it.
            mem_masks: [B, M] bool, True at what is to be remembered, the same for all.
            return_mems: tell what each attention reads, of the last `max_mem_len` inputs.
            return_intermediates: tell what was made on the way, `LayerIntermediates`.
            return_attn: tell the weights of each attention.
            cache: what an earlier call gave with `return_intermediates=True`; the answers are those of what it has not
                read.
            input_not_include_cache: the inputs are the new ones alone, and not all.
            streams: further streams of the embedding.
            **more: those of `takes_orders`; upstream's other arguments, at their defaults.
        """
        refuse_call(type(self).__name__, {}, more)
        layers = self.attn_layers
        check_condition(layers, condition)
        if prepend_mask is not None and prepend_embeds is None:
            raise InputError("prepend_mask was passed without prepend_embeds")
        given = {
            "mask": attention_mask(heads_in_order(layers.native, attn_mask, "attn_mask"), self_attn_kv_mask),
            "bias": heads_in_order(layers.native, attn_bias, "attn_bias"),
            "context": context,
            "context_mask": context_mask,
            "prefix": prepend_embeds,
            "prefix_valid": prepend_mask,
            "condition": condition,
            "injected": injected(in_attn_cond),
            **(streams or {}),
        }
        remembers = Remembers(mems, mem_masks, return_mems, self.max_mem_len)
        with recording(layers.native) if return_intermediates or return_attn else nullcontext() as recorder:
            told = None if recorder is None else recorder.found
            if cache is None:
                check_context(layers, context)
                self._check(inputs, mask)
                positions, valid = placing(layers.causal, inputs.shape[1], inputs.device, mask, pos, seq_start_pos)
                placed = {**given, "positions": positions, "valid": valid, "watch": recorder}
                out, kept = remembers.run(self.native, inputs, placed, self.num_memory_tokens)
                after = Cache(inputs, {**given, "valid": valid}, positions, layers.order)
                valid = over_all(valid, prepend_embeds, prepend_mask, inputs)
            else:
                if remembers.anything:
                    raise InputError("a cache holds what was read: it goes without memories of earlier segments")
                steps = Steps(inputs, cache_of(cache), input_not_include_cache, 1, layers.causal, layers.order)
                out, after, valid = steps.read(self.native, {**given, "watch": recorder}, mask, pos, seq_start_pos)
                kept = None
            if told is not None and not self.for_one_call:
                told.cache = after
        return Found(out, valid, kept, told, return_intermediates)

    def _check(self, inputs: Tensor, mask: Tensor | None) -> None:
        length, longest = inputs.shape[1], self.native.max_seq_len
        check_mask("mask", mask, inputs.shape[0], length)
        if longest is not None and length > longest:
            raise InputError(f"the sequence has {length} inputs, and the absolute positions end at {longest}")
