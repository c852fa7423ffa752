"""`TransformerWrapper`: tokens in, logits out, around any stack of this dialect."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.call import (
    MODEL_CALL,
    attention_mask,
    check_condition,
    check_context,
    check_mask,
    injected,
    placing,
    refuse_call,
)
from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.model import ModelDraft, read_model, stack_path
from variform.dialects.x_transformers.read import resolved
from variform.stack.model import Transformer
from variform.stack.registers import RegisterStack


class TransformerWrapper(nn.Module):
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
        layers = keywords.get("attn_layers")
        draft = read_model(type(self).__name__, keywords, getattr(layers, "dim", 0))
        assert isinstance(layers, AttentionLayers)
        spec = resolved(draft.spec(layers.spec, layers.dim, layers.disable_abs_pos_emb))
        self._hold(build(spec, ready={stack_path(draft): layers.native}), layers, draft)

    def _hold(self, native: Transformer, layers: AttentionLayers, draft: ModelDraft) -> None:
        self.native = native
        # Not registered: its parameters are the native model's, and must not be listed twice.
        self.__dict__["attn_layers"] = layers
        self.num_tokens = draft.num_tokens
        self.max_seq_len = draft.max_seq_len
        self.max_mem_len = draft.max_mem_len
        self.shift_mem_down = draft.shift_mem_down
        self.emb_dim = layers.dim

    @classmethod
    def around(cls, native: Transformer, layers: AttentionLayers, draft: ModelDraft) -> TransformerWrapper:
        """The wrapper of a model that is built already."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper._hold(native, layers, draft)
        return wrapper

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
        """Whether tokens can be read one after another with cached keys and values."""
        return not any(isinstance(stack, RegisterStack) for stack in self.native.stacks.in_order())

    @property
    def can_cache_kv_outside_max_seq_len(self) -> bool:
        """Whether nothing but the caller bounds the length: there are no absolute positions."""
        return self.native.max_seq_len is None

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
        self_attn_kv_mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        condition: Tensor | None = None,
        in_attn_cond: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """Run the model.

        Args:
            x: token ids.
            return_embeddings: the hidden states in place of the logits.
            return_logits_and_embeddings: both.
            mask: [B, L] bool, True at real tokens.
            pos: [L] or [B, L] positions.
            prepend_embeds: [B, P, dim] features before the tokens.
            prepend_mask: [B, P] bool, True at real features.
            excise_prepend_embeds: leave the features in front out of the result.
            context: [B, Lc, dim] for cross attention.
            context_mask: [B, Lc] bool, True at real tokens of the context.
            attn_mask: [L, L], [H, L, L] or [B, H, L, L] bool, True = may attend; L counts the features in front.
            self_attn_kv_mask: [B, L] bool, keys that may be attended; L counts the features in front.
            seq_start_pos: [B] where each row begins, of rows padded on the left.
            condition: [B, C] or [B, L, C] for adaptive parts; L counts the features in front.
            in_attn_cond: [B, L, dim] or [B, dim], added to what every sublayer reads; L counts the features in front.
            **more: upstream's other arguments, at their defaults.
        """
        refuse_call(type(self).__name__, MODEL_CALL, more)
        layers: AttentionLayers = self.__dict__["attn_layers"]
        check_context(layers, context)
        check_condition(layers, condition)
        self._check(x, mask, prepend_embeds, prepend_mask)
        positions, valid = placing(layers.causal, x.shape[1], x.device, mask, pos, seq_start_pos)
        hidden = self.native(
            x,
            positions=positions,
            valid=valid,
            mask=attention_mask(attn_mask, self_attn_kv_mask),
            context=context,
            context_mask=context_mask,
            condition=condition,
            prefix=prepend_embeds,
            prefix_valid=prepend_mask,
            injected=injected(in_attn_cond),
            hidden=True,
        )
        if excise_prepend_embeds and prepend_embeds is not None:
            hidden = hidden[:, prepend_embeds.shape[1] :]
        if self.native.head is None or (return_embeddings and not return_logits_and_embeddings):
            return hidden
        logits = self.native.head(hidden, {})
        return (logits, hidden) if return_logits_and_embeddings else logits

    def _check(self, x: Tensor, mask: Tensor | None, prefix: Tensor | None, prefix_mask: Tensor | None) -> None:
        if x.dim() != 2 or x.is_floating_point():
            raise InputError(f"token ids are integers of shape [batch, length], not {x.dtype} {list(x.shape)}")
        longest = self.native.max_seq_len
        if longest is not None and x.shape[1] > longest:
            raise InputError(f"the sequence has {x.shape[1]} tokens, and the absolute positions end at {longest}")
        check_mask("mask", mask, x.shape[0], x.shape[1])
        if prefix_mask is not None and prefix is None:
            raise InputError("prepend_mask was passed without prepend_embeds")
