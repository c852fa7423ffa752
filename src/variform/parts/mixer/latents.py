"""Attention through latents: they are expanded to keys and values, or multiplied with queries as they are."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from variform.parts.attention.kv_cache import join_cache
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.key_values.latent import LatentKeyValues
from variform.parts.kinds import Attention, Norm, Rotation, Sides, State


def attend_latents(
    keys: LatentKeyValues,
    attention: Attention,
    rotation: Rotation | None,
    k_norm: Norm | None,
    made: tuple[Tensor, Tensor, Tensor],
    sides: Sides,
) -> Tensor | tuple[Tensor, State]:
    """Attend to what latents stand for; with a state, to those kept before as well: as latents where the attention
    needs no state of its own, and else by it, as keys and values.

    Args:
        keys: makes and expands them.
        attention: what happens between q, k and v.
        rotation: of queries and keys, or of their own parts where they have some.
        k_norm: of the keys.
        made: the queries, the latents, and what the keys have of their own.
        sides: what else is known.

    Shapes:
        made: [B, H, L, dim_head] and what `keys` gives -> [B, H, L, dim_value]
    """
    q, first, second = made
    state, positions = sides.state, sides.k_positions
    early = k_norm is None and keys.has_own  # then own keys are rotated once and for all, before they are kept
    if rotation is not None and early:
        before, turning, after = keys.rotated(q)
        turning, second = rotation(turning, second, positions, positions)
        q = keys.joined(before, turning, after)
    later = None if early else rotation
    if state is None or sides.cache is None or not attention.takes_joined:  # then it keeps keys and values itself
        return _expanded(keys, attention, later, k_norm, (q, first, second), positions, sides)
    positions = sides.cache["positions"]
    first, second, sides, state = join_cache(first, second, sides, state, sides.cache, positioned=True)
    if later is None and absorbs(keys, attention, k_norm, sides, q.shape[2]):
        return attend_absorbed(keys, attention, (q, first, second), sides), state
    sides = replace(sides, state=None, cache=None)
    out = _expanded(keys, attention, later, k_norm, (q, first, second), positions, sides)
    assert isinstance(out, Tensor)
    return out, state


def absorbs(keys: LatentKeyValues, attention: Attention, k_norm: Norm | None, sides: Sides, queries: int) -> bool:
    """Whether latents can stand for keys and values, and that is the cheaper way for so many queries.

    The attention must see keys in products with queries alone, be linear in values, and see no keys but those.
    """
    plain = type(attention) is SoftmaxAttention and attention.memory is None
    plain = plain and (sides.beside is None or sides.beside.k is None)
    plain = plain and getattr(attention, "scores", None) is None and k_norm is None
    return plain and keys.spares(queries)


def attend_absorbed(
    keys: LatentKeyValues, attention: Attention, made: tuple[Tensor, Tensor, Tensor], sides: Sides
) -> Tensor:
    """Attend with latents in the place of keys and values."""
    q, first, second = made
    wide, k = keys.absorbed(q, first, second)
    if getattr(attention, "scale", None) is None:
        wide = wide * math.sqrt(wide.shape[-1] / q.shape[-1])  # the factor is that of the queries as they were
    out = attention(wide, k, first, sides)
    assert isinstance(out, Tensor)
    return keys.released(out)


def _expanded(
    keys: LatentKeyValues,
    attention: Attention,
    rotation: Rotation | None,
    k_norm: Norm | None,
    made: tuple[Tensor, Tensor, Tensor],
    positions: Tensor | None,
    sides: Sides,
) -> Tensor | tuple[Tensor, State]:
    q, first, second = made
    k, v = keys.expand(first, second)
    k = k if k_norm is None else k_norm(k)
    if rotation is not None:
        (q_before, q_turning, q_after), (k_before, k_turning, k_after) = keys.rotated(q), keys.rotated(k)
        q_turning, k_turning = rotation(q_turning, k_turning, sides.q_positions, positions)
        q, k = keys.joined(q_before, q_turning, q_after), keys.joined(k_before, k_turning, k_after)
    return attention(q, k, v, sides)
