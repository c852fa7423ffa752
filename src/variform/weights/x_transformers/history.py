"""What branches read beyond the residual stream, in x-transformers' checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from variform.ops.rotary import rotary_frequencies
from variform.parts.entry.layers import LayerAttention, LayerMixture
from variform.parts.entry.pooled import LayerPooling
from variform.parts.kinds import Entry as BranchEntry
from variform.parts.norm.norms import RMSNorm
from variform.parts.stream_ops.history import BeginHistory, JoinSkip, KeepSkip
from variform.parts.stream_ops.inject import InjectInput
from variform.stack.sublayer import Sublayer, TransformerLayer
from variform.weights.entries import Entry, affine, constant, plain
from variform.weights.x_transformers.pieces import linear_entries, no_counterpart, norm_entries

BESIDE = (BeginHistory, KeepSkip, JoinSkip, InjectInput)
"""Layers that upstream does not count among its sublayers."""


def history_entries(stack: nn.Module, steps: Sequence[Sublayer], prefix: str) -> Iterator[Entry]:
    """The entries of entries, skips and injections of a stack."""
    for index, step in enumerate(steps):
        yield from _entry(step.entry, f"{prefix}layer_integrators.{index}.")
    for module in stack.modules():
        if isinstance(module, InjectInput):
            if module.project is not None:
                yield plain(f"{prefix}reinject_input_proj.weight", module.project.weight)
            if module.gate is not None:
                yield plain(f"{prefix}learned_reinject_input_gate.weight", module.gate.weight)
        elif isinstance(module, TransformerLayer):
            yield from _skips(module, steps, prefix)


def _skips(layer: TransformerLayer, steps: Sequence[Sublayer], prefix: str) -> Iterator[Entry]:
    """A join goes by the number of the step after it."""
    join: JoinSkip | None = None
    for child in layer.sublayers.in_order():
        if isinstance(child, Sublayer) and join is not None:
            yield plain(f"{prefix}skip_combines.{steps.index(child)}.combine.weight", join.combine.weight)
        join = child if isinstance(child, JoinSkip) else None


def _entry(part: BranchEntry | None, prefix: str) -> Iterator[Entry]:
    if part is None:
        return
    if isinstance(part, LayerMixture):
        yield from norm_entries(f"{prefix}to_weights.0", part.norm, 0.0)
        yield from linear_entries(f"{prefix}to_weights.{0 if part.norm is None else 1}", part.mix)
    elif isinstance(part, LayerAttention):
        for key, norm in (("to_query.0", part.norm), ("norm", part.query_norm), ("to_keys", part.key_norm)):
            if not isinstance(norm, RMSNorm) or norm.weight is None:
                raise no_counterpart(norm)
            yield plain(f"{prefix}{key}.weight", norm.weight)
        yield plain(f"{prefix}to_query.1.down.weight", part.down.weight)
        yield plain(f"{prefix}to_query.1.up.weight", part.up)
    elif isinstance(part, LayerPooling):
        yield from _pooling(part, prefix)
    else:
        raise no_counterpart(part)


def _pooling(part: LayerPooling, prefix: str) -> Iterator[Entry]:
    if part.queries is not None:
        yield plain(f"{prefix}attn_pool.queries", part.queries)
    if part.of_input is not None:
        if not isinstance(part.norm, RMSNorm) or part.norm.weight is None:
            raise no_counterpart(part)
        yield plain(f"{prefix}to_queries.0.weight", part.norm.weight)
        yield plain(f"{prefix}to_queries.1.weight", part.of_input.weight)
    for key, linear in (("to_q", part.q), ("to_k", part.k), ("to_v", part.v), ("to_out", part.out)):
        yield plain(f"{prefix}attn_pool.pooler.{key}.weight", linear.weight)
    if not isinstance(part.key_norm, RMSNorm) or part.key_norm.weight is None:
        raise no_counterpart(part)
    yield affine(f"{prefix}attn_pool.pooler.k_rmsnorm.gamma", part.key_norm.weight, offset=1.0)
    if part.rotation is not None:
        size = part.q.out_features // part.heads
        angles = rotary_frequencies(size, 10000.0, 1.0)
        yield constant(f"{prefix}pos_emb.inv_freq", angles.float(), "rotary angles")
