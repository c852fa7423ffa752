"""Keywords of upstream's `TransformerWrapper`, routed to a model of the core."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from variform.core.spec import Shared, Spec
from variform.dialects.x_transformers.attention_layers import AttentionLayers
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
from variform.stack.condition import condition_size
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
    max_mem_len: int = 0
    shift_mem_down: int = 0
    share_tokens: bool = False
    problems: list[Problem] = field(default_factory=list)

    def spec(self, stack: Spec, dim: int, without_positions: bool) -> Spec:
        """The model around a stack of width `dim`."""
        placed = self.use_abs_pos_emb and not without_positions and self.max_seq_len > 0
        tokens, embedding = self._embedding(dim, placed)
        return Transformer.spec(
            dim=dim,
            causal=stack["causal"],
            dim_condition=condition_size(stack),
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
    "max_mem_len": Route(0, put("max_mem_len"), types=(int,)),
    "shift_mem_down": Route(0, put("shift_mem_down"), needs="max_mem_len", types=(int,)),
    **refused(
        embed_num_tokens={},
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
