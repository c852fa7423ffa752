"""What the wrappers of other inputs than plain tokens have in common: keywords, the model of the core, its call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.call import (
    attention_mask,
    check_condition,
    check_context,
    check_mask,
    placing,
    refuse_call,
)
from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.read import resolved
from variform.dialects.x_transformers.table import REQUIRED, Route, Table, apply_all, problems_of, put, raise_any
from variform.errors import Problem
from variform.parts.memories import Memories
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition
from variform.stack.condition import condition_size
from variform.stack.decodable import undecodable
from variform.stack.model import Transformer
from variform.stack.prefix import behind_prefix
from variform.stack.registers import RegisterStack

AROUND_CALL: dict[str, Any] = {
    "return_intermediates": False,
    "return_attn": False,
    "cache": None,
    "input_not_include_cache": False,
    "condition": None,
    "in_attn_cond": None,
    "rotary_pos_emb": None,
    "attn_bias": None,
}
"""Arguments of the forward methods that are known and not supported, with upstream's defaults."""


class Found(NamedTuple):
    """What a call gave.

    Args:
        hidden: [B, L, dim] the hidden states, of the features in front too.
        valid: [B, L] bool, which of them are real; None for all.
        mems: what each attention read of this segment, where it was asked for.
    """

    hidden: Tensor
    valid: Tensor | None
    mems: tuple[Tensor, ...] | None

    def answered(self, out: Any) -> Any:
        """The answer, with what was asked for beside it."""
        return out if self.mems is None else (out, self.mems)


@dataclass
class AroundDraft:
    """A model on its way to a spec."""

    max_seq_len: int | None = None
    emb_dropout: float = 0.0
    post_emb_norm: bool = False
    use_abs_pos_emb: bool = True
    num_memory_tokens: int | None = None
    max_mem_len: int = 0
    problems: list[Problem] = field(default_factory=list)

    def spec(self, layers: AttentionLayers) -> Spec:
        """The model around a stack."""
        stack = layers.spec
        placed = bool(self.max_seq_len) and self.use_abs_pos_emb and not layers.disable_abs_pos_emb
        return Transformer.spec(
            dim=layers.dim,
            causal=stack["causal"],
            dim_condition=condition_size(stack),
            max_seq_len=self.max_seq_len if placed else None,
            stacks=[
                RegisterStack.spec(stack=stack, count=self.num_memory_tokens, std=1.0)
                if self.num_memory_tokens
                else stack
            ],
            **self.ends(layers.dim, self._position(layers.dim) if placed else None),
        )

    def ends(self, dim: int, position: Spec | None) -> dict[str, Any]:
        """The slots `embedding` and `head` of the model, and its `vocab_size`."""
        raise NotImplementedError

    def norm(self) -> Spec | None:
        """The norm on the embedded inputs."""
        return LayerNorm.spec(bias=False) if self.post_emb_norm else None

    def _position(self, dim: int) -> Spec:
        return LearnedPosition.spec(std=1.0, scale=dim**-0.5, max_seq_len=self.max_seq_len)

    @property
    def stack_path(self) -> str:
        """Where in the spec the stack of `attn_layers` stands."""
        return "stacks.0.stack" if self.num_memory_tokens else "stacks.0"

    def check(self, dim: int) -> list[Problem]:
        """The rules that concern several keywords."""
        found = []
        if (self.num_memory_tokens or 0) < 0:
            found.append(Problem("num_memory_tokens", "must not be negative", self.num_memory_tokens))
        if self.max_mem_len < 0:
            found.append(Problem("max_mem_len", "must not be negative", self.max_mem_len))
        if (self.max_seq_len or 0) < 0:
            found.append(Problem("max_seq_len", "must be positive, or 0 for no absolute positions", self.max_seq_len))
        return found


AROUND: Table = {
    "attn_layers": Route(REQUIRED, lambda draft, value: None, types=(AttentionLayers,)),
    "emb_dropout": Route(0.0, put("emb_dropout"), types=(int, float)),
    "use_abs_pos_emb": Route(True, put("use_abs_pos_emb")),
    "num_memory_tokens": Route(None, put("num_memory_tokens"), types=(int,)),
    "max_mem_len": Route(0, put("max_mem_len"), types=(int,)),
}
"""Keywords that all of these wrappers have."""


class AroundWrapper(nn.Module):
    """A model around `attn_layers` whose inputs or answers are not plain tokens.

    What is built is a model of the core, `native`, which holds the very stack that was passed in.
    """

    table: ClassVar[Table]
    draft: ClassVar[type[AroundDraft]]

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        layers, table = keywords.get("attn_layers"), self.table
        raise_any(problems_of(type(self).__name__, table, keywords, table))
        assert isinstance(layers, AttentionLayers)
        draft = self.draft()
        apply_all(draft, table, keywords)
        raise_any(draft.check(layers.dim))
        self.native: Transformer = build(resolved(draft.spec(layers)), ready={draft.stack_path: layers.native})
        # Not registered: its parameters are the native model's, and must not be listed twice.
        self.__dict__["attn_layers"] = layers
        self.max_seq_len = draft.max_seq_len
        self.max_mem_len = draft.max_mem_len
        self.added = draft.num_memory_tokens or 0
        self._hold(draft)

    def _hold(self, draft: Any) -> None:
        """Keep what the call needs of the draft."""

    @property
    def spec(self) -> Spec:
        """The full description of the model."""
        return self.native.spec

    @property
    def unit_offset(self) -> bool:
        """Whether upstream's checkpoints of this model store the gains of norms less one."""
        layers: AttentionLayers = self.__dict__["attn_layers"]
        return layers.unit_offset

    @property
    def can_cache_kv(self) -> bool:
        """Whether inputs can be read one after another with cached keys and values."""
        return not undecodable(self.native.spec)

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
        condition: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        mem_masks: Sequence[Tensor] | None = None,
        return_mems: bool = False,
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
            self_attn_kv_mask: [B, L] bool, keys that may be attended; L counts the features in front.
            condition: [B, C] or [B, L, C] for adaptive parts; L counts the features in front.
            mems: what each attention read of an earlier segment, [B, M, dim], as `return_mems` gave it.
            mem_masks: [B, M] bool, True at what is to be remembered, the same for all.
            return_mems: tell what each attention reads, of the last `max_mem_len` inputs.
            streams: further streams of the embedding.
            **more: upstream's other arguments, at their defaults.
        """
        refuse_call(type(self).__name__, AROUND_CALL, more)
        layers: AttentionLayers = self.__dict__["attn_layers"]
        check_context(layers, context)
        check_condition(layers, condition)
        batch, length = inputs.shape[:2]
        check_mask("mask", mask, batch, length)
        if prepend_mask is not None and prepend_embeds is None:
            raise InputError("prepend_mask was passed without prepend_embeds")
        longest = self.native.max_seq_len
        if longest is not None and length > longest:
            raise InputError(f"the sequence has {length} inputs, and the absolute positions end at {longest}")
        positions, valid = placing(layers.causal, length, inputs.device, mask, pos, seq_start_pos)
        memories = None
        if mems is not None or return_mems:
            memories = Memories(self.max_mem_len, 0, tuple(mems or ()), _one_mask(mem_masks), compact=False)
        out = self.native(
            inputs,
            positions=positions,
            valid=valid,
            mask=attention_mask(attn_mask, self_attn_kv_mask),
            context=context,
            context_mask=context_mask,
            prefix=prepend_embeds,
            prefix_valid=prepend_mask,
            condition=condition,
            memories=memories,
            hidden=True,
            **(streams or {}),
        )
        kept: tuple[Tensor, ...] | None = None
        if memories is not None:
            out, after = out
            if return_mems:  # of this segment alone
                count = min(self.max_mem_len, out.shape[1] + self.added)
                kept = tuple(one[:, one.shape[1] - count :].detach() for one in after.features)
        if prepend_embeds is not None:
            valid = behind_prefix(prepend_embeds, prepend_mask, {"positions": None, "valid": valid}, length)["valid"]
        return Found(out, valid, kept)


def _one_mask(masks: Sequence[Tensor] | Tensor | None) -> Tensor | None:
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
