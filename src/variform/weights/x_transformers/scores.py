"""Score features of x-transformers' checkpoints: what changes scores, and what makes weights of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from variform.parts.attention.distance import LengthMemory
from variform.parts.attention.memory import JoinedMemory, LearnedMemory
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.attention.values import ExponentialMemory
from variform.parts.kinds import Attention, Scoring, Weighting
from variform.parts.scoring.bounds import SoftCapScores, TalkingHeadScores
from variform.parts.scoring.contextual import ContextualPositions
from variform.parts.scoring.distance import ProjectedDistance
from variform.parts.scoring.gates import ForgetGates, ForgetRowGates
from variform.parts.scoring.selective import SelectiveScores
from variform.parts.weighting.around import AroundWeighting, HeadScaledWeighting, SinkWeighting, TalkingHeadWeighting
from variform.weights.entries import Entry, constant, plain, reordered
from variform.weights.x_transformers.pieces import no_counterpart


def score_entries(attention: Attention, prefix: str, heads: Sequence[int]) -> Iterator[Entry]:
    """The entries of the scorings and the weighting of an attention.

    Args:
        attention: the innermost one.
        prefix: what keys begin with.
        heads: for each of our heads the upstream head that it is.
    """
    if not isinstance(attention, (SoftmaxAttention, LocalAttention)):
        raise no_counterpart(attention)
    for part in () if attention.scores is None else attention.scores.parts:
        yield from _scoring(part, prefix, heads)
    weights = attention.weights
    while weights is not None:
        yield from _weighting(weights, prefix, heads)
        weights = weights.weights if isinstance(weights, AroundWeighting) else None


def learned_memory(memory: nn.Module | None) -> LearnedMemory | None:
    """The learned keys and values among an attention's."""
    if isinstance(memory, JoinedMemory):
        found = [part for part in map(learned_memory, memory.memories) if part is not None]
        return found[0] if found else None
    if isinstance(memory, (ExponentialMemory, LengthMemory)):  # as attentions around need them
        return learned_memory(memory.memory)
    return memory if isinstance(memory, LearnedMemory) else None


def _scoring(part: Scoring, prefix: str, heads: Sequence[int]) -> Iterator[Entry]:
    if isinstance(part, TalkingHeadScores):
        yield _mixing(f"{prefix}attend.pre_softmax_talking_heads.weight", part.weight, heads)
    elif isinstance(part, ContextualPositions):
        yield plain(f"{prefix}attend.cope.pos_emb", part.embedding)
        if part.temperature is not None:
            yield constant(f"{prefix}attend.cope.positions", torch.arange(len(part.embedding)), "positions")
        if part.mixing is not None:
            yield _mixing(f"{prefix}attend.cope.talking_heads.weight", part.mixing, heads)
    elif isinstance(part, ForgetGates):
        # Rows of gates of the past, one a head, then those of the future.
        count = len(part.bias) // len(heads)
        order = [gate * len(heads) + head for gate in range(count) for head in heads]
        yield reordered(f"{prefix}data_dependent_alibi.to_forget_gates.0.weight", part.weight, order, 0)
        yield reordered(f"{prefix}data_dependent_alibi.to_forget_gates.0.bias", part.bias, order, 0)
    elif isinstance(part, ForgetRowGates):
        yield _both(f"{prefix}data_dependent_alibi.to_forget_gates.0.weight", part, heads)
    elif isinstance(part, ProjectedDistance):
        size = part.bank.shape[0]
        yield plain(f"{prefix}rel_proj_pos_bias.distance_bank", part.bank)
        yield reordered(f"{prefix}rel_proj_pos_bias.to_distance_weights.0.weight", part.weight, heads, 0, size)
        yield reordered(f"{prefix}rel_proj_pos_bias.to_distance_weights.0.bias", part.bias, heads, 0, size)
    elif not isinstance(part, (SoftCapScores, SelectiveScores)):
        raise no_counterpart(part)


def _weighting(part: Weighting, prefix: str, heads: Sequence[int]) -> Iterator[Entry]:
    if isinstance(part, SinkWeighting):
        yield reordered(f"{prefix}attend.head_attn_sink", part.sink, heads, 0)
    elif isinstance(part, TalkingHeadWeighting):
        yield _mixing(f"{prefix}attend.post_softmax_talking_heads.weight", part.weight, heads)
    elif isinstance(part, HeadScaledWeighting):
        yield _mixing(f"{prefix}attend.pre_scale_post_talking_heads.weight", part.weight, heads)


def _mixing(key: str, weight: Tensor, heads: Sequence[int]) -> Entry:
    """A map from heads to heads, a convolution upstream."""
    rows = reordered("", weight, heads, 0)
    columns = reordered("", weight, heads, 1)
    return Entry(
        key,
        (weight,),
        lambda t: rows.load(columns.load(t[..., 0, 0])[0]),
        lambda ps: rows.store([columns.store(ps)])[..., None, None],
    )


def _both(key: str, part: ForgetRowGates, heads: Sequence[int]) -> Entry:
    """Maps to g and h are one upstream, (g or h, head, feature)."""
    queries, keys = (reordered("", weight, heads, 0, part.features) for weight in (part.queries, part.keys))

    def load(t: Tensor) -> tuple[Tensor, Tensor]:
        g, h = t.chunk(2)
        return queries.load(g)[0], keys.load(h)[0]

    return Entry(
        key, (part.queries, part.keys), load, lambda ps: torch.cat((queries.store([ps[0]]), keys.store([ps[1]])))
    )
