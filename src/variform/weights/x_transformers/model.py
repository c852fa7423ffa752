"""Models, embeddings and heads of x-transformers' checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.embedding.numbers import NumberEmbedding
from variform.parts.embedding.patches import PatchEmbedding
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.head.heads import ClassifierHead, LinearHead, LMHead, PoolHead, TiedLMHead
from variform.parts.head.joined import JoinedHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition
from variform.parts.stream_ops.branch import BranchStart
from variform.stack.model import EncoderDecoder, Transformer
from variform.stack.registers import RegisterStack
from variform.weights.entries import Entry, affine, plain, reordered, shaped
from variform.weights.x_transformers.pieces import feedforward_entries, linear_entries, no_counterpart, norm_entries
from variform.weights.x_transformers.stack import UPSTREAM_STACKS, stack_entries


def model_entries(model: nn.Module, prefix: str, offset: float) -> Iterator[Entry]:
    """A model's entries: an encoder and decoder, a stack, or embedding, stack and head."""
    if isinstance(model, EncoderDecoder):
        yield from model_entries(model.encoder, f"{prefix}encoder.", offset)
        yield from model_entries(model.decoder, f"{prefix}decoder.net.", offset)
    elif isinstance(model, UPSTREAM_STACKS):
        yield from stack_entries(model, prefix, offset)
    elif isinstance(model, BranchStart):
        yield from model_entries(model.body, prefix, offset)
    elif isinstance(model, (MLP, GLU)):
        yield from feedforward_entries(model, f"{prefix}ff.")
    elif isinstance(model, Transformer) and len(model.stacks) == 1 and model.embedding is not None:
        yield from _embedding(model.embedding, prefix)
        stack = next(model.stacks.in_order())
        if isinstance(stack, RegisterStack):
            yield plain(f"{prefix}{'memory' if stack.front else 'register'}_tokens", stack.tokens)
            stack = stack.stack
        if not isinstance(stack, UPSTREAM_STACKS):
            raise no_counterpart(stack)
        yield from stack_entries(stack, f"{prefix}attn_layers.", offset)
        yield from _head(model.head, prefix)
    else:
        raise no_counterpart(model)


def _embedding(part: nn.Module, prefix: str) -> Iterator[Entry]:
    if isinstance(part, (PrefixedEmbedding, NumberEmbedding)):
        yield from _embedding(part.embedding, prefix)
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


def _placed(part: TokenEmbedding | FeatureEmbedding | PlacedEmbedding, prefix: str) -> Iterator[Entry]:
    if isinstance(part.position, LearnedPosition):
        weight = part.position.weight
        yield affine(f"{prefix}pos_emb.emb.weight", weight, factor=weight.shape[1] ** -0.5 / part.position.scale)
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


def _head(head: nn.Module | None, prefix: str) -> Iterator[Entry]:
    if isinstance(head, LMHead):
        yield from linear_entries(f"{prefix}to_logits", head.project)
    elif isinstance(head, LinearHead):
        yield from linear_entries(f"{prefix}project_out", head.project)
    elif isinstance(head, JoinedHead):
        for index, part in enumerate(head.parts):
            for entry in _head(part, ""):
                own = entry.key.rpartition(".")[2]
                yield replace(entry, key=f"{prefix}to_logits.{index}.{own}")
    elif isinstance(head, ClassifierHead):
        yield plain(f"{prefix}mlp_head.weight", head.project.weight)
        if head.project.bias is not None:
            yield plain(f"{prefix}mlp_head.bias", head.project.bias)
    elif head is not None and not isinstance(head, (TiedLMHead, PoolHead)):
        raise no_counterpart(head)
