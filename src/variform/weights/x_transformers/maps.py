"""Maps into and out of the heads of x-transformers' checkpoints: latents, gated ways out, none at all."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from variform.parts.key_values.latent import LatentKeyValues
from variform.parts.key_values.linear import LinearKeyValues
from variform.parts.kinds import KeyValues, Projection
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.parts.projection.maps import (
    GatedProjection,
    HeadOrder,
    IdentityProjection,
    LinearProjection,
    LowRankProjection,
)
from variform.weights.entries import Entry, constant, plain, reordered
from variform.weights.x_transformers.around import Cut, Heads, permuted, value_times
from variform.weights.x_transformers.pieces import no_counterpart


def map_entries(mixer: ProjectedAttention | ProjectedCrossAttention, prefix: str, heads: Heads) -> Iterator[Entry]:
    """The entries of the maps of a mixer."""
    query, output = mixer.query, mixer.output
    if isinstance(query, LowRankProjection) and query.activation == "none":
        yield plain(f"{prefix}to_latent_q.weight", query.down.weight)
    elif not isinstance(query, LinearProjection) or query.offset is not None:
        raise no_counterpart(query)
    yield reordered(f"{prefix}to_q.weight", query.out.weight, heads.order, 0, mixer.dim_head)
    yield from _key_values(mixer.keys, prefix)
    yield from _output(output, prefix, heads, value_times(mixer.attention))


def _key_values(keys: KeyValues, prefix: str) -> Iterator[Entry]:
    if isinstance(keys, LinearKeyValues) and not has_offset(keys.k):
        yield plain(f"{prefix}to_k.weight", keys.k.weight)
    elif isinstance(keys, LatentKeyValues) and keys.norm is None and not keys.own_features:
        yield plain(f"{prefix}to_latent_kv.weight", keys.latent.weight)
        if keys.own is not None:
            yield plain(f"{prefix}to_rotateable_k.weight", keys.own.weight)
        if keys.k is None:  # upstream has a map to nothing
            yield constant(f"{prefix}to_k.weight", keys.v.weight.new_zeros(0, keys.dim_latent), "keys")
        else:
            yield plain(f"{prefix}to_k.weight", keys.k.weight)
    else:
        raise no_counterpart(keys)
    yield plain(f"{prefix}to_v.weight", keys.v.weight)


def _output(output: Projection, prefix: str, heads: Heads, times: int) -> Iterator[Entry]:
    inputs = Cut(heads.order, heads.dim_value, times)
    if isinstance(output, LinearProjection) and output.offset is None:
        yield permuted(f"{prefix}to_out.weight", output.out.weight, Cut(None, 1), inputs)
    elif isinstance(output, GatedProjection) and not has_offset(output.out):
        yield permuted(f"{prefix}to_out.0.weight", output.out.weight, Cut(None, 1), inputs)
    elif isinstance(output, HeadOrder):
        places = [
            list(heads.order).index(head) * times + one for one in range(times) for head in range(len(heads.order))
        ]
        if output.order != places:
            raise no_counterpart(output)
    elif not isinstance(output, IdentityProjection) or inputs.rows(0).diff().ne(1).any():
        raise no_counterpart(output)


def has_offset(linear: nn.Linear) -> bool:
    """Whether a linear map learns an offset."""
    return "bias" in dict(linear.named_parameters())
