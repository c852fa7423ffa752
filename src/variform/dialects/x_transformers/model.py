"""Keywords of upstream's `TransformerWrapper`, routed to a model of the core."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from variform.core.spec import Shared, Spec
from variform.dialects.x_transformers.answers import HEADS, HeadDraft
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.surroundings import Rule, broken, position_of, rules_around
from variform.dialects.x_transformers.table import REQUIRED, Route, Table, apply_all, kept, problems_of, put, raise_any
from variform.errors import Problem
from variform.parts.embedding.deep import DeepEmbedding
from variform.parts.embedding.factorised import FactorisedEmbedding
from variform.parts.embedding.module import ModuleEmbedding
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.embedding.summed import SummedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.head.heads import TiedLMHead
from variform.parts.norm.norms import LayerNorm
from variform.stack.condition import condition_size
from variform.stack.interspersed import InterspersedStack
from variform.stack.model import Transformer
from variform.stack.recurrent import LoopedStack, RecycledStack
from variform.stack.registers import RegisterStack


@dataclass
class ModelDraft:
    """A model on its way to a spec; its fields are upstream's keywords."""

    num_tokens: int = 0
    max_seq_len: int = 0
    emb_dim: int | None = None
    embed_num_tokens: Mapping[str, int] = field(default_factory=dict)
    token_emb: nn.Module | None = None
    emb_dropout: float = 0.0
    emb_frac_gradient: float = 1.0
    post_emb_norm: bool = False
    l2norm_embed: bool = False
    tie_embedding: bool = False
    tie_embedding_scale: float | None = None
    use_abs_pos_emb: bool = True
    scaled_sinu_pos_emb: bool = False
    num_memory_tokens: int | None = None
    max_mem_len: int = 0
    shift_mem_down: int = 0
    memory_tokens_interspersed_every: int | None = None
    use_cls_token: bool = False
    num_cls_tokens: int = 1
    recycling: bool = False
    train_max_recycle_steps: int = 4
    looped: bool = False
    max_looped_steps: int = 4
    attn_z_loss_weight: float = 1e-4
    input_not_include_cache: bool = False
    ff_deep_embed: bool = False
    share_tokens: bool = False
    heads: HeadDraft = field(default_factory=HeadDraft)
    problems: list[Problem] = field(default_factory=list)

    def spec(self, layers: AttentionLayers) -> Spec:
        """The model around a stack of this dialect."""
        dim = layers.dim
        width = self.emb_dim or dim
        position = position_of(self, layers, width, self.l2norm_embed)
        tokens, embedding = self._embedding(width, position)
        front = PrefixedEmbedding.spec(
            embedding=embedding, dropout=self.emb_dropout, gradient=float(self.emb_frac_gradient)
        )
        if width != dim:
            front = FactorisedEmbedding.spec(embedding=front, dim_embedding=width)
        if self.ff_deep_embed:
            front = DeepEmbedding.spec(embedding=front, depth=layers.gain_count)
        tied = None
        if self.tie_embedding:
            scale = dim**-0.5 if self.tie_embedding_scale is None else float(self.tie_embedding_scale)
            tied = TiedLMHead.spec(embedding=tokens, scale=scale)
        return Transformer.spec(
            dim=dim,
            causal=layers.spec["causal"],
            dim_condition=condition_size(layers.spec),
            max_seq_len=None if position is None else self.max_seq_len,
            vocab_size=self.num_tokens,
            embedding=front,
            stacks=[self._stack(layers.spec)],
            head=self.heads.spec(layers, self.num_tokens, tied),
        )

    def _stack(self, stack: Spec) -> Spec:
        """From the inside out: the layers, their passes, memory tokens before them, class tokens before those."""
        if self.recycling:
            most = self.train_max_recycle_steps
            stack = RecycledStack.spec(stack=stack, passes=most, train_passes=most)
        if self.looped:
            stack = LoopedStack.spec(stack=stack, passes=self.max_looped_steps)
        if self.num_memory_tokens:
            every = self.memory_tokens_interspersed_every
            size: dict[str, Any] = {"count": self.num_memory_tokens, "std": 1.0}
            if every is None:
                stack = RegisterStack.spec(stack=stack, **size)
            else:
                stack = InterspersedStack.spec(stack=stack, every=every, **size)
        if self.use_cls_token:
            stack = RegisterStack.spec(stack=stack, count=self.num_cls_tokens, std=0.02, keep="added")
        return stack

    def _embedding(self, width: int, position: Spec | None) -> tuple[Spec | Shared, Spec | Shared]:
        """The part that holds the token vectors, and the whole embedding."""
        norm = LayerNorm.spec(bias=False) if self.post_emb_norm else None
        inner = None if self.embed_num_tokens else norm
        if self.token_emb is not None:
            whole: Spec | Shared = ModuleEmbedding.spec(module=self.token_emb, position=position, norm=inner)
            return whole, self._summed(whole, norm)
        std = 1e-5 if self.l2norm_embed else math.sqrt(2 / width)
        tokens = TokenEmbedding.spec(vocab_size=self.num_tokens, dim=width, init_std=std, unit=self.l2norm_embed)
        if self.share_tokens:  # between models, whose positions are their own
            shared = Shared("tokens", tokens)
            if position is None:
                return shared, shared
            return shared, PlacedEmbedding.spec(embedding=shared, position=position, norm=norm)
        whole = tokens.replace(position=position, norm=inner)
        if self.tie_embedding:
            whole = Shared("tokens", whole)
        return whole, self._summed(whole, norm)

    def _summed(self, tokens: Spec | Shared, norm: Spec | None) -> Spec | Shared:
        """The embeddings of further ids, which are added before the norm."""
        if not self.embed_num_tokens:
            return tokens
        further = [TokenEmbedding.spec(vocab_size=size, init_std=1.0) for size in self.embed_num_tokens.values()]
        names = tuple(self.embed_num_tokens)
        return SummedEmbedding.spec(embedding=tokens, further=further, names=names, norm=norm)

    def check(self, layers: AttentionLayers) -> list[Problem]:
        """The rules that concern several keywords."""
        found = self.heads.check(layers, self)
        found += broken(self, self._rules(layers))
        for name in ("num_tokens", "emb_dim", "num_cls_tokens", "train_max_recycle_steps", "max_looped_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(Problem(name, "must be positive", value))
        for name, size in self.embed_num_tokens.items():
            if type(size) is not int or size < 1:
                found.append(Problem("embed_num_tokens", f"a positive number of {name!r} ids is needed", size))
        return found

    def _rules(self, layers: AttentionLayers) -> Iterator[Rule]:
        width = self.emb_dim or layers.dim
        yield from rules_around(self, layers, width)
        yield not 0.0 < self.emb_frac_gradient <= 1.0, "emb_frac_gradient", "a part in (0, 1] is needed"
        message = f"token vectors of {width} features cannot answer for hidden states of {layers.dim}; leave one out"
        yield self.tie_embedding and width != layers.dim, "tie_embedding", message
        message = "a module of one's own has no vectors to tie the head to"
        yield self.tie_embedding and self.token_emb is not None, "tie_embedding", message
        message = "has no effect on a module of one's own"
        yield self.l2norm_embed and self.token_emb is not None, "l2norm_embed", message
        message = "sines and cosines are not normalised; leave one out"
        yield self.l2norm_embed and self.scaled_sinu_pos_emb, "scaled_sinu_pos_emb", message
        message = "class tokens stand in front, and see no token of causal layers; take an Encoder"
        yield self.use_cls_token and layers.causal, "use_cls_token", message
        every = self.memory_tokens_interspersed_every
        yield every is not None and every < 1, "memory_tokens_interspersed_every", "must be positive"
        yield every is not None and not layers.causal, "memory_tokens_interspersed_every", "needs a Decoder"
        message = "deep embeddings are of tokens, and added tokens have none"
        added = bool(self.num_memory_tokens or self.use_cls_token)
        yield self.ff_deep_embed and added, "ff_deep_embed", message
        message = "has no effect on layers without feedforwards"
        yield self.ff_deep_embed and layers.gain_count == 0, "ff_deep_embed", message
        message = "recycling and looped both say how often the layers run; choose one"
        yield self.recycling and self.looped, "looped", message
        message = "needs layers that normalise what they give: build them with pre_and_post_norm=True"
        yield self.looped and not layers.pre_and_post_norm, "looped", message


MODEL: Table = {
    "num_tokens": Route(REQUIRED, put("num_tokens"), types=(int,)),
    "max_seq_len": Route(REQUIRED, put("max_seq_len"), types=(int,)),
    "attn_layers": Route(REQUIRED, kept, types=(AttentionLayers,)),
    "emb_dim": Route(None, put("emb_dim"), types=(int,)),
    "embed_num_tokens": Route({}, put("embed_num_tokens"), types=(dict,)),
    "token_emb": Route(None, put("token_emb"), types=(nn.Module,)),
    "emb_dropout": Route(0.0, put("emb_dropout"), types=(int, float)),
    "emb_frac_gradient": Route(1.0, put("emb_frac_gradient"), types=(int, float)),
    "post_emb_norm": Route(False, put("post_emb_norm")),
    "l2norm_embed": Route(False, put("l2norm_embed")),
    "tie_embedding": Route(False, put("tie_embedding")),
    "tie_embedding_scale": Route(None, put("tie_embedding_scale"), needs="tie_embedding", types=(int, float)),
    "use_abs_pos_emb": Route(True, put("use_abs_pos_emb")),
    "scaled_sinu_pos_emb": Route(False, put("scaled_sinu_pos_emb")),
    "num_memory_tokens": Route(None, put("num_memory_tokens"), types=(int,)),
    "max_mem_len": Route(0, put("max_mem_len"), types=(int,)),
    "shift_mem_down": Route(0, put("shift_mem_down"), needs="max_mem_len", types=(int,)),
    "memory_tokens_interspersed_every": Route(
        None, put("memory_tokens_interspersed_every"), needs="num_memory_tokens", types=(int,)
    ),
    "use_cls_token": Route(False, put("use_cls_token")),
    "num_cls_tokens": Route(1, put("num_cls_tokens"), needs="use_cls_token", types=(int,)),
    "recycling": Route(False, put("recycling")),
    "train_max_recycle_steps": Route(4, put("train_max_recycle_steps"), needs="recycling", types=(int,)),
    "looped": Route(False, put("looped")),
    "max_looped_steps": Route(4, put("max_looped_steps"), needs="looped", types=(int,)),
    "attn_z_loss_weight": Route(1e-4, put("attn_z_loss_weight"), types=(int, float)),
    "input_not_include_cache": Route(False, put("input_not_include_cache")),
    **HEADS,
    "ff_deep_embed": Route(False, put("ff_deep_embed")),
}
"""Keyword -> what it does to a `ModelDraft`."""


def stack_path(draft: ModelDraft) -> str:
    """Where in a model's spec the stack of `attn_layers` stands."""
    around = (draft.use_cls_token, draft.num_memory_tokens, draft.recycling or draft.looped)
    return "stacks.0" + ".stack" * sum(map(bool, around))


def read_model(owner: str, keywords: dict[str, Any]) -> ModelDraft:
    """The draft that the keywords of `TransformerWrapper` describe, `attn_layers` aside.

    Raises:
        KeywordError: every problem at once.
    """
    raise_any(problems_of(owner, MODEL, keywords, MODEL))
    draft = ModelDraft()
    apply_all(draft, MODEL, keywords)
    raise_any(draft.check(keywords["attn_layers"]))
    return draft
