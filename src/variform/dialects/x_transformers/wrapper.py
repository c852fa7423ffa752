"""`TransformerWrapper`: tokens in, logits out, around any stack of this dialect."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Shared, Spec
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.call import (
    MODEL_CALL,
    attention_mask,
    check_context,
    check_mask,
    placing,
    refuse_call,
)
from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.read import resolved
from variform.dialects.x_transformers.table import (
    REQUIRED,
    Route,
    Table,
    apply_all,
    problems_of,
    put,
    raise_any,
    refused,
)
from variform.errors import Problem
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.head.heads import LMHead, TiedLMHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition
from variform.stack.model import Transformer
from variform.stack.registers import RegisterStack


@dataclass
class ModelDraft:
    """A model on its way to a spec."""

    num_tokens: int = 0
    max_seq_len: int = 0
    emb_dim: int | None = None
    emb_dropout: float = 0.0
    post_emb_norm: bool = False
    tie_embedding: bool = False
    tie_embedding_scale: float | None = None
    logits_dim: int | None = None
    return_only_embed: bool = False
    use_abs_pos_emb: bool = True
    num_memory_tokens: int | None = None
    share_tokens: bool = False
    problems: list[Problem] = field(default_factory=list)

    def spec(self, stack: Spec, dim: int, without_positions: bool) -> Spec:
        """The model around a stack of width `dim`."""
        placed = self.use_abs_pos_emb and not without_positions and self.max_seq_len > 0
        tokens, embedding = self._embedding(dim, placed)
        return Transformer.spec(
            dim=dim,
            causal=stack["causal"],
            max_seq_len=self.max_seq_len if placed else None,
            vocab_size=self.num_tokens,
            embedding=PrefixedEmbedding.spec(embedding=embedding, dropout=self.emb_dropout),
            stacks=[
                RegisterStack.spec(stack=stack, count=self.num_memory_tokens, std=1.0)
                if self.num_memory_tokens
                else stack
            ],
            head=self._head(tokens, dim),
        )

    def _embedding(self, dim: int, placed: bool) -> tuple[Spec | Shared, Spec | Shared]:
        """The part that holds the token vectors, and the whole embedding."""
        position = LearnedPosition.spec(std=1.0, scale=dim**-0.5, max_seq_len=self.max_seq_len) if placed else None
        tokens = TokenEmbedding.spec(vocab_size=self.num_tokens, dim=dim, init_std=math.sqrt(2 / dim))
        norm = LayerNorm.spec(bias=False) if self.post_emb_norm else None
        if self.share_tokens:  # between models, whose positions are their own
            shared = Shared("tokens", tokens)
            return shared, shared if position is None else PlacedEmbedding.spec(embedding=shared, position=position)
        whole = tokens.replace(position=position, norm=norm)
        embedding = Shared("tokens", whole) if self.tie_embedding else whole
        return embedding, embedding

    def _head(self, tokens: Spec | Shared, dim: int) -> Spec | None:
        if self.return_only_embed:
            return None
        if self.tie_embedding:
            scale = dim**-0.5 if self.tie_embedding_scale is None else float(self.tie_embedding_scale)
            return TiedLMHead.spec(embedding=tokens, scale=scale)
        return LMHead.spec(vocab_size=self.logits_dim or self.num_tokens)

    def check(self, dim: int) -> list[Problem]:
        """The rules that concern several keywords."""
        found = []
        if self.emb_dim not in (None, dim):
            message = f"embeddings of another width than the layers' {dim} are not supported yet"
            found.append(Problem("emb_dim", message, self.emb_dim))
        if self.tie_embedding and (self.logits_dim is not None or self.return_only_embed):
            message = "a tied head has one logit a token; leave logits_dim and return_only_embed out"
            found.append(Problem("tie_embedding", message))
        if (self.num_memory_tokens or 0) < 0:
            found.append(Problem("num_memory_tokens", "must not be negative", self.num_memory_tokens))
        for name in ("num_tokens", "logits_dim"):
            if (getattr(self, name) or 1) < 1 or (name == "num_tokens" and self.num_tokens < 1):
                found.append(Problem(name, "must be positive", getattr(self, name)))
        if self.max_seq_len < 0:
            found.append(Problem("max_seq_len", "must be positive, or 0 for no absolute positions", self.max_seq_len))
        return found


MODEL: Table = {
    "num_tokens": Route(REQUIRED, put("num_tokens"), types=(int,)),
    "max_seq_len": Route(REQUIRED, put("max_seq_len"), types=(int,)),
    "attn_layers": Route(REQUIRED, lambda draft, value: None, types=(AttentionLayers,)),
    "emb_dim": Route(None, put("emb_dim"), types=(int,)),
    "emb_dropout": Route(0.0, put("emb_dropout"), types=(int, float)),
    "post_emb_norm": Route(False, put("post_emb_norm")),
    "tie_embedding": Route(False, put("tie_embedding")),
    "tie_embedding_scale": Route(None, put("tie_embedding_scale"), needs="tie_embedding", types=(int, float)),
    "logits_dim": Route(None, put("logits_dim"), types=(int,)),
    "return_only_embed": Route(False, put("return_only_embed")),
    "use_abs_pos_emb": Route(True, put("use_abs_pos_emb")),
    "num_memory_tokens": Route(None, put("num_memory_tokens"), types=(int,)),
    **refused(
        embed_num_tokens={},
        max_mem_len=0,
        shift_mem_down=0,
        memory_tokens_interspersed_every=None,
        num_output_heads=1,
        scaled_sinu_pos_emb=False,
        l2norm_embed=False,
        recycling=False,
        train_max_recycle_steps=4,
        looped=False,
        max_looped_steps=4,
        emb_frac_gradient=1.0,
        attn_z_loss_weight=0.0001,
        average_pool_embed=False,
        use_cls_token=False,
        num_cls_tokens=1,
        attn_pool=False,
        num_pooled_tokens=1,
        attn_pool_depth=1,
        dim_pooled_tokens=None,
        squeeze_out_last_dim=False,
        token_emb=None,
        mixture_of_softmax=False,
        mixture_of_softmax_k=4,
        sigsoftmax_logits=False,
        ff_deep_embed=False,
        to_logits=None,
        add_continuous_pred_head=False,
        input_not_include_cache=False,
    ),
}
"""Keyword -> what it does to a `ModelDraft`."""


def stack_path(draft: ModelDraft) -> str:
    """Where in a model's spec the stack of `attn_layers` stands."""
    return "stacks.0.stack" if draft.num_memory_tokens else "stacks.0"


def read_model(owner: str, keywords: dict[str, Any], dim: int) -> ModelDraft:
    """The draft that the keywords of `TransformerWrapper` describe, `attn_layers` aside.

    Raises:
        KeywordError: every problem at once.
    """
    raise_any(problems_of(owner, MODEL, keywords, MODEL))
    draft = ModelDraft()
    apply_all(draft, MODEL, keywords)
    raise_any(draft.check(dim))
    return draft


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
        **keywords: see `MODEL`.

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
            **more: upstream's other arguments, at their defaults.
        """
        refuse_call(type(self).__name__, MODEL_CALL, more)
        layers: AttentionLayers = self.__dict__["attn_layers"]
        check_context(layers, context)
        self._check(x, mask, prepend_embeds, prepend_mask)
        positions, valid = placing(layers.causal, x.shape[1], x.device, mask, pos, seq_start_pos)
        hidden = self.native(
            x,
            positions=positions,
            valid=valid,
            mask=attention_mask(attn_mask, self_attn_kv_mask),
            context=context,
            context_mask=context_mask,
            prefix=prepend_embeds,
            prefix_valid=prepend_mask,
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
