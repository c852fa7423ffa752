"""Keywords of upstream's `TransformerWrapper` that say what it answers with, routed to heads of the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from variform.core.spec import Spec
from variform.dialects.x_transformers.read import read_layers
from variform.dialects.x_transformers.surroundings import Rule, broken
from variform.dialects.x_transformers.table import Route, Table
from variform.errors import Problem
from variform.parts.head.heads import LMHead
from variform.parts.head.joined import JoinedHead
from variform.parts.head.mixture import MixtureHead, SigsoftmaxHead
from variform.parts.head.module import ModuleHead
from variform.parts.head.pooled import AttentionPoolHead, PooledHead
from variform.parts.head.readouts import NextEmbeddingHead, Readouts, SqueezedHead
from variform.parts.mixer.cross import CrossMultiHead

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention_layers import AttentionLayers
    from variform.dialects.x_transformers.model import ModelDraft


@dataclass
class HeadDraft:
    """What a model answers with; its fields are upstream's keywords."""

    logits_dim: int | None = None
    num_output_heads: int = 1
    return_only_embed: bool = False
    to_logits: nn.Module | None = None
    squeeze_out_last_dim: bool = False
    mixture_of_softmax: bool = False
    mixture_of_softmax_k: int = 4
    sigsoftmax_logits: bool = False
    average_pool_embed: bool = False
    attn_pool: bool = False
    num_pooled_tokens: int = 1
    attn_pool_depth: int = 1
    dim_pooled_tokens: int | None = None
    add_continuous_pred_head: bool = False

    def spec(self, layers: AttentionLayers, num_tokens: int, tied: Spec | None) -> Spec | None:
        """The head: logits, or what stands in their place; further answers beside it."""
        logits = self._logits(num_tokens, tied)
        main = self._pooled(logits)
        further: list[Spec] = []
        if self.attn_pool:
            pool = self._attention_pool(layers)
            # Of causal layers, whose answers are the tokens', the pool is a further answer.
            main, further = (pool, []) if main is None else (main, [pool]) if layers.causal else (pool, [main])
        if self.add_continuous_pred_head:
            further.append(NextEmbeddingHead.spec())
        return Readouts.spec(main=main, further=further) if further else main

    def _logits(self, num_tokens: int, tied: Spec | None) -> Spec | None:
        if self.return_only_embed:
            return None
        size = self.logits_dim or num_tokens
        own = None if self.to_logits is None else ModuleHead.spec(module=self.to_logits)
        one = tied or own or LMHead.spec(vocab_size=size)
        if self.num_output_heads > 1:
            one = JoinedHead.spec(parts=[LMHead.spec(vocab_size=size)] * self.num_output_heads)
        if self.sigsoftmax_logits:
            one = SigsoftmaxHead.spec(head=one)
        if self.mixture_of_softmax:
            one = MixtureHead.spec(head=one, components=self.mixture_of_softmax_k)
        return SqueezedHead.spec(head=one) if self.squeeze_out_last_dim and self.num_output_heads == 1 else one

    def _pooled(self, logits: Spec | None) -> Spec | None:
        return PooledHead.spec(head=logits) if self.average_pool_embed else logits

    def _attention_pool(self, layers: AttentionLayers) -> Spec:
        width = self.dim_pooled_tokens or layers.dim
        size: dict[str, Any] = {"heads": layers.heads, "dim_head": layers.attn_dim_head}
        body = CrossMultiHead.spec(dim=width, dim_context=layers.dim, **size)
        if self.attn_pool_depth > 1:
            keywords = {"dim": width, "depth": self.attn_pool_depth, "heads": layers.heads}
            inner = {"attn_dim_head": layers.attn_dim_head, "cross_attn_dim_context": layers.dim}
            _, body = read_layers("AttentionPool", {**keywords, **inner, "cross_attend": True, "only_cross": True})
        return AttentionPoolHead.spec(body=body, queries=self.num_pooled_tokens, dim_query=width)

    def check(self, layers: AttentionLayers, model: ModelDraft) -> list[Problem]:
        """The rules that concern several keywords."""
        found = broken(self, self._rules(layers, model))
        for name in ("logits_dim", "num_output_heads", "mixture_of_softmax_k", "num_pooled_tokens", "attn_pool_depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(Problem(name, "must be positive", value))
        return found

    def _rules(self, layers: AttentionLayers, model: ModelDraft) -> Iterator[Rule]:
        named = "without a head there are no logits: leave it out"
        for name in ("logits_dim", "to_logits", "squeeze_out_last_dim", "mixture_of_softmax", "sigsoftmax_logits"):
            yield self.return_only_embed and bool(getattr(self, name)), name, named
        yield self.return_only_embed and self.num_output_heads > 1, "num_output_heads", named
        message = "without a head there is nothing to tie: leave tie_embedding out"
        yield self.return_only_embed and model.tie_embedding, "return_only_embed", message
        own = "a tied head has one logit a token"
        for name in ("logits_dim", "to_logits"):
            yield model.tie_embedding and bool(getattr(self, name)), name, own
        message = "several heads have weights of their own: a tied head, a module of one's own and mixtures are single"
        single = model.tie_embedding or self.to_logits is not None or self.mixture_of_softmax
        yield self.num_output_heads > 1 and single, "num_output_heads", message
        message = "a module of one's own settles how many logits there are"
        yield self.to_logits is not None and self.logits_dim is not None, "logits_dim", message
        size = self.logits_dim or model.num_tokens
        message = f"there is no axis of 1 to leave out: a token has {size} logits"
        yield self.squeeze_out_last_dim and self.to_logits is None and size != 1, "squeeze_out_last_dim", message
        message = "choose one of average_pool_embed and use_cls_token"
        yield self.average_pool_embed and model.use_cls_token, "average_pool_embed", message
        message = "choose one of attn_pool, average_pool_embed and use_cls_token"
        yield self.attn_pool and (model.use_cls_token or self.average_pool_embed), "attn_pool", message
        message = "a prediction of the next token's features needs causal layers"
        yield self.add_continuous_pred_head and not layers.causal, "add_continuous_pred_head", message


def _answer(name: str) -> Callable[[Any, Any], None]:
    def apply(draft: Any, value: Any) -> None:
        setattr(draft.heads, name, value)

    return apply


HEADS: Table = {
    "logits_dim": Route(None, _answer("logits_dim"), types=(int,)),
    "num_output_heads": Route(1, _answer("num_output_heads"), types=(int,)),
    "return_only_embed": Route(False, _answer("return_only_embed")),
    "to_logits": Route(None, _answer("to_logits"), types=(nn.Module,)),
    "squeeze_out_last_dim": Route(False, _answer("squeeze_out_last_dim")),
    "mixture_of_softmax": Route(False, _answer("mixture_of_softmax")),
    "mixture_of_softmax_k": Route(4, _answer("mixture_of_softmax_k"), needs="mixture_of_softmax", types=(int,)),
    "sigsoftmax_logits": Route(False, _answer("sigsoftmax_logits")),
    "average_pool_embed": Route(False, _answer("average_pool_embed")),
    "attn_pool": Route(False, _answer("attn_pool")),
    "num_pooled_tokens": Route(1, _answer("num_pooled_tokens"), needs="attn_pool", types=(int,)),
    "attn_pool_depth": Route(1, _answer("attn_pool_depth"), needs="attn_pool", types=(int,)),
    "dim_pooled_tokens": Route(None, _answer("dim_pooled_tokens"), needs="attn_pool", types=(int,)),
    "add_continuous_pred_head": Route(False, _answer("add_continuous_pred_head")),
}
"""Keyword -> what it does to the `heads` of a `ModelDraft`."""
