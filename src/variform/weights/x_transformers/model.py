"""Models, embeddings and heads of x-transformers' checkpoints."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from variform.parts.embedding.deep import DeepEmbedding
from variform.parts.embedding.factorised import FactorisedEmbedding
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.embedding.module import ModuleEmbedding
from variform.parts.embedding.numbers import NumberEmbedding
from variform.parts.embedding.patches import PatchEmbedding
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.embedding.summed import SummedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.head.heads import ClassifierHead, LinearHead, LMHead, PoolHead, TiedLMHead
from variform.parts.head.joined import JoinedHead
from variform.parts.head.mixture import MixtureHead, SigsoftmaxHead
from variform.parts.head.module import ModuleHead
from variform.parts.head.pooled import AttentionPoolHead, PooledHead
from variform.parts.head.probe import ModuleThenHead, ProbeHead
from variform.parts.head.readouts import NextEmbeddingHead, Readouts, SqueezedHead
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition, ScaledSinusoidalPosition
from variform.parts.stream_ops.branch import BranchStart
from variform.stack.encoder_decoder import EncoderDecoder
from variform.stack.interspersed import InterspersedStack
from variform.stack.model import Transformer
from variform.stack.recurrent import LoopedStack, RecycledStack
from variform.stack.registers import RegisterStack
from variform.weights.entries import Entry, affine, plain, reordered, shaped
from variform.weights.x_transformers.attention import MIXERS, attention_entries
from variform.weights.x_transformers.pieces import feedforward_entries, linear_entries, no_counterpart, norm_entries
from variform.weights.x_transformers.stack import UPSTREAM_STACKS, stack_entries


def model_entries(model: nn.Module, prefix: str, offset: float) -> Iterator[Entry]:
    """A model's entries: an encoder and decoder, a stack, or embedding, stack and head."""
    if isinstance(model, EncoderDecoder):
        yield from model_entries(model.encoder, f"{prefix}encoder.", offset)
        yield from model_entries(model.decoder, f"{prefix}decoder.net.", offset)
    elif isinstance(model, UPSTREAM_STACKS):
        yield from stack_entries(model, prefix, offset)
    elif isinstance(model, MIXERS):
        yield from attention_entries(model, prefix)
    elif isinstance(model, BranchStart):
        yield from model_entries(model.body, prefix, offset)
    elif isinstance(model, AttentionPoolHead):
        yield from _pool(model, prefix, offset)
    elif isinstance(model, (MLP, GLU)):
        yield from feedforward_entries(model, f"{prefix}ff.")
    elif isinstance(model, Transformer) and len(model.stacks) == 1 and model.embedding is not None:
        yield from _embedding(model.embedding, prefix)
        stack = yield from _around(next(model.stacks.in_order()), prefix)
        yield from stack_entries(stack, f"{prefix}attn_layers.", offset)
        yield from _head(model.head, prefix, offset)
    else:
        raise no_counterpart(model)


def _around(stack: nn.Module, prefix: str) -> Generator[Entry, None, Any]:
    """What stands around the layers: added tokens, and passes."""
    if isinstance(stack, UPSTREAM_STACKS):
        return stack
    if isinstance(stack, RegisterStack) and stack.keep == "added":
        yield plain(f"{prefix}cls_token", stack.tokens)
    elif isinstance(stack, (RegisterStack, InterspersedStack)):
        behind = isinstance(stack, RegisterStack) and not stack.front
        yield plain(f"{prefix}{'register' if behind else 'memory'}_tokens", stack.tokens)
    elif isinstance(stack, RecycledStack):
        yield plain(f"{prefix}recycled_proj.weight", stack.project.weight)
    elif isinstance(stack, LoopedStack):
        yield plain(f"{prefix}exit_gate.weight", stack.gate.weight)
    else:
        raise no_counterpart(stack)
    return (yield from _around(stack.stack, prefix))


def _embedding(part: nn.Module, prefix: str) -> Iterator[Entry]:
    if isinstance(part, DeepEmbedding):
        yield plain(f"{prefix}ff_deep_embed", part.gains)
        yield from _embedding(part.embedding, prefix)
        return
    if isinstance(part, (PrefixedEmbedding, NumberEmbedding)):
        yield from _embedding(part.embedding, prefix)
        return
    if isinstance(part, FactorisedEmbedding):
        yield from _embedding(part.embedding, prefix)
        yield from linear_entries(f"{prefix}project_emb", part.project)
        return
    if isinstance(part, SummedEmbedding):
        yield from _embedding(part.embedding, prefix)
        for name, further in zip(part.names, part.further, strict=True):
            if not isinstance(further, TokenEmbedding):
                raise no_counterpart(further)
            yield plain(f"{prefix}embeds.{name}_embed.weight", further.weight)
        yield from norm_entries(f"{prefix}post_emb_norm", part.norm, 0.0)
        return
    if isinstance(part, ModuleEmbedding):
        yield from own_entries(f"{prefix}token_emb.", part.module)
        yield from _placed(part, prefix)
        return
    if isinstance(part, PlacedEmbedding):
        yield from _embedding(part.embedding, prefix)
        yield from _placed(part, prefix)
    elif isinstance(part, FeatureEmbedding) and part.class_token is None:
        if part.project is not None:
            yield from linear_entries(f"{prefix}project_in", part.project)
        yield from _placed(part, prefix)
    elif isinstance(part, TokenEmbedding) and part.factor == 1.0:
        yield plain(f"{prefix}token_emb.emb.weight", part.weight)
        yield from _placed(part, prefix)
    elif (
        isinstance(part, PatchEmbedding)
        and part.class_token is None
        and isinstance(part.position, LearnedPosition)
        and part.position.scale == 1.0
    ):
        yield shaped(f"{prefix}pos_embedding", part.position.weight, (1, *part.position.weight.shape))
        yield from _patches(part, f"{prefix}patch_to_embedding.")
        yield from norm_entries(f"{prefix}post_emb_norm", part.norm, 0.0)
    else:
        raise no_counterpart(part)


def own_entries(prefix: str, module: nn.Module) -> Iterator[Entry]:
    """A user's own module, by its own names."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        yield plain(prefix + name, tensor)


Placed = TokenEmbedding | FeatureEmbedding | PlacedEmbedding | ModuleEmbedding


def _placed(part: Placed, prefix: str) -> Iterator[Entry]:
    if isinstance(part.position, LearnedPosition):
        weight, unit = part.position.weight, part.position.unit
        factor = 1.0 if unit else weight.shape[1] ** -0.5 / part.position.scale
        yield affine(f"{prefix}pos_emb.emb.weight", weight, factor=factor)
    elif isinstance(part.position, ScaledSinusoidalPosition):
        yield plain(f"{prefix}pos_emb.scale", part.position.factor)
    elif part.position is not None:
        raise no_counterpart(part.position)
    yield from norm_entries(f"{prefix}post_emb_norm", part.norm, 0.0)


def _patches(part: PatchEmbedding, prefix: str) -> Iterator[Entry]:
    """Upstream flattens a patch as (row, column, channel), the core as (channel, row, column)."""
    weight = part.project.weight
    dim, channels, size, _ = weight.shape
    pixels = torch.arange(channels * size * size).view(size, size, channels).permute(2, 0, 1).flatten().tolist()
    if isinstance(part.patch_norm, LayerNorm) and part.patch_norm.weight is not None:
        yield reordered(f"{prefix}0.gamma", part.patch_norm.weight, pixels, 0)
    yield Entry(
        f"{prefix}1.weight",
        (weight,),
        lambda t: (t.view(dim, size, size, channels).permute(0, 3, 1, 2),),
        lambda ps: ps[0].permute(0, 2, 3, 1).reshape(dim, -1),
    )
    if part.project.bias is not None:
        yield plain(f"{prefix}1.bias", part.project.bias)
    yield from norm_entries(f"{prefix}2", part.token_norm, 0.0)


def _pool(pool: AttentionPoolHead, prefix: str, offset: float) -> Iterator[Entry]:
    """Queries, where they are learned, and what attends."""
    queries: nn.Parameter | None = pool.queries
    if queries is not None:
        yield plain(f"{prefix}queries", queries)
    if isinstance(pool.body, CrossMultiHead):
        yield from attention_entries(pool.body, f"{prefix}pooler.")
    elif isinstance(pool.body, UPSTREAM_STACKS):
        yield from stack_entries(pool.body, f"{prefix}pooler.", offset)
    else:
        raise no_counterpart(pool.body)


def _head(head: nn.Module | None, prefix: str, offset: float) -> Iterator[Entry]:
    if isinstance(head, LMHead):
        yield from linear_entries(f"{prefix}to_logits", head.project)
    elif isinstance(head, LinearHead):
        yield from linear_entries(f"{prefix}project_out", head.project)
    elif isinstance(head, JoinedHead):
        for index, part in enumerate(head.parts):
            for entry in _head(part, "", offset):
                own = entry.key.rpartition(".")[2]
                yield replace(entry, key=f"{prefix}to_logits.{index}.{own}")
    elif isinstance(head, ModuleHead):
        yield from own_entries(f"{prefix}to_logits.", head.module)
    elif isinstance(head, (ProbeHead, ModuleThenHead)):
        yield from _probe(head, prefix, offset)
    elif isinstance(head, (SigsoftmaxHead, SqueezedHead, PooledHead)):
        yield from _head(head.head, prefix, offset)
    elif isinstance(head, MixtureHead):
        yield plain(f"{prefix}to_mixture.0.weight", head.expand.weight)
        yield plain(f"{prefix}combine_mixture.weight", head.weigh.weight)
        yield from _head(head.head, prefix, offset)
    elif isinstance(head, Readouts):
        for one in (head.main, *head.further):
            yield from _head(one, prefix, offset)
    elif isinstance(head, NextEmbeddingHead):
        yield plain(f"{prefix}to_next_embed_pred.0.weight", head.up.weight)
        yield plain(f"{prefix}to_next_embed_pred.2.weight", head.down.weight)
    elif isinstance(head, AttentionPoolHead):
        yield from _pool(head, f"{prefix}attn_pool.", offset)
    elif isinstance(head, ClassifierHead):
        yield plain(f"{prefix}mlp_head.weight", head.project.weight)
        if head.project.bias is not None:
            yield plain(f"{prefix}mlp_head.bias", head.project.bias)
    elif head is not None and not isinstance(head, (TiedLMHead, PoolHead)):
        raise no_counterpart(head)


def _probe(head: ProbeHead | ModuleThenHead, prefix: str, offset: float) -> Iterator[Entry]:
    """What stands before a head, one after another in a list with it."""
    place = 0
    if isinstance(head, ModuleThenHead):
        yield from own_entries(f"{prefix}to_logits.0.", head.module)
        if not isinstance(head.head, ProbeHead):
            raise no_counterpart(head.head)
        head, place = head.head, 1
    yield from norm_entries(f"{prefix}to_logits.{place}", head.norm, 0.0)
    for step, part in enumerate((head.up, head.between, head.down)):
        yield from linear_entries(f"{prefix}to_logits.{place + 1 + 2 * step}", part)
    for entry in _head(head.head, "", offset):
        key = entry.key.removeprefix("to_logits.")
        moved = f"to_logits.{place + 6}.{key}" if key != entry.key else key
        yield replace(entry, key=prefix + moved)
