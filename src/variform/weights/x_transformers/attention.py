"""Attention of x-transformers' checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.parts.norm.grouped import GroupedRMSNorm
from variform.parts.norm.norms import RMSNorm
from variform.parts.position.polar import PolarRotation
from variform.weights.entries import Entry, plain, reordered
from variform.weights.x_transformers.around import Heads, around_entries, innermost
from variform.weights.x_transformers.maps import map_entries
from variform.weights.x_transformers.pieces import no_counterpart
from variform.weights.x_transformers.scores import learned_memory, score_entries

AnyMixer = MultiHead | CrossMultiHead | ProjectedAttention | ProjectedCrossAttention
MIXERS = (MultiHead, CrossMultiHead, ProjectedAttention, ProjectedCrossAttention)
"""The mixers that are upstream's `Attention`."""


def attention_entries(mixer: AnyMixer, prefix: str) -> Iterator[Entry]:
    """The entries of a multi-head attention; query heads are tiled upstream."""
    heads, size = tiled_heads(mixer.heads, mixer.kv_heads), mixer.dim_head
    if isinstance(mixer, (MultiHead, CrossMultiHead)):
        yield reordered(f"{prefix}to_q.weight", mixer.q.weight, heads, 0, size)
        yield plain(f"{prefix}to_k.weight", mixer.k.weight)
        yield plain(f"{prefix}to_v.weight", mixer.v.weight)
        yield reordered(f"{prefix}to_out.weight", mixer.out.weight, heads, 1, size)
        yield from around_entries(mixer.attention, prefix, Heads(heads, mixer.kv_heads, size))
    else:
        yield from map_entries(mixer, prefix, Heads(heads, mixer.kv_heads, mixer.dim_value))
        yield from around_entries(mixer.attention, prefix, Heads(heads, mixer.kv_heads, mixer.dim_value))
    attention = innermost(mixer.attention)
    memory = getattr(attention, "memory", None)
    yield from score_entries(attention, prefix, heads)
    memory = learned_memory(memory)
    if memory is not None:
        yield plain(f"{prefix}mem_k", memory.keys)
        yield plain(f"{prefix}mem_v", memory.values)
    # A factor on the product of q and k: their norms are l2 norms with gains, else RMS norms.
    # Distances of polar features, of which there are twice as many, are given the usual factor of a head, too.
    cosine = getattr(attention, "scale", None) is not None and not _is_polar(mixer)
    if cosine and mixer.q_norm is None:
        raise no_counterpart(attention)
    names = ("qk_norm_q_scale", "qk_norm_k_scale") if cosine else ("q_rmsnorm.gamma", "k_rmsnorm.gamma")
    for name, norm, order in zip(names, (mixer.q_norm, mixer.k_norm), (heads, range(mixer.kv_heads)), strict=True):
        if isinstance(norm, (RMSNorm, GroupedRMSNorm)) and norm.weight is not None:
            factor, offset = (size**-0.25, 0.0) if cosine else (1.0, 1.0)
            yield reordered(prefix + name, norm.weight, list(order), 0, factor=factor, offset=offset)


def _is_polar(mixer: nn.Module) -> bool:
    """Whether queries and keys get lengths and angles as they are, not after an l2 norm."""
    rotation = getattr(mixer, "rotation", None)
    return isinstance(rotation, PolarRotation) and rotation.scale == 1.0


def tiled_heads(heads: int, kv_heads: int) -> list[int]:
    """For each query head here, the upstream head that it is."""
    group = heads // kv_heads
    return [member * kv_heads + key_head for key_head in range(kv_heads) for member in range(group)]
