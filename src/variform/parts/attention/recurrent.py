"""What attentions share that are recurrences over the sequence."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from variform.core.part import Can
from variform.errors import ShapeError
from variform.ops.chunks import grouped
from variform.ops.gated_linear_attention import GatedState
from variform.parts.kinds import Norm, Sides, State

ABLE = Can(attention_mask=False, cross=False)
"""What a recurrence can do: it has one sequence, and no scores to mask."""

Recurrence = Callable[..., tuple[Tensor, GatedState]]
"""From tensors of `[B, H, L, ...]`, `k_valid`, `segments` and `state` to the result and the new state."""


def real_tokens(
    q: Tensor, k: Tensor, v: Tensor, sides: Sides, heads: int, dim: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One key head a query head, and zeros where a token is padding, whose gates are then finite."""
    if q.shape[1] != heads:
        raise ShapeError(f"this attention has rates or gates for {heads} heads, and q has {q.shape[1]}")
    if dim is not None and v.shape[3] != dim:
        raise ShapeError(f"this attention has gates or a norm for values of {dim} features a head, not {v.shape[3]}")
    if q.shape[2] != k.shape[2]:
        raise ShapeError(f"a recurrence needs as many queries as keys, not {q.shape[2]} and {k.shape[2]}")
    k, v = grouped((k, v), heads)
    if sides.k_valid is None:
        return q, k, v
    invalid = ~sides.k_valid[:, None, :, None]
    return q.masked_fill(invalid, 0), k.masked_fill(invalid, 0), v.masked_fill(invalid, 0)


def each_token(v: Tensor, weight: Tensor) -> Tensor:
    """One number a token and head: [B, H, L, D], [H, D] -> [B, H, L]."""
    return (v @ weight[..., None])[..., 0]


def run_recurrence(
    recurrence: Recurrence, tensors: tuple[Tensor, ...], both: Tensor | float | None, norm: Norm | None, sides: Sides
) -> Tensor | tuple[Tensor, State]:
    """The recurrence from left to right, or in both directions.

    Args:
        both: None for one direction; else what to do with the sum of two: subtract a tensor, or multiply by a number.
    """
    valid, segments, state = sides.k_valid, sides.k_segments, sides.state
    past = None if state is None else GatedState(state["s"], state["segment"])
    out, new = recurrence(*tensors, k_valid=valid, segments=segments, state=past)
    if both is not None:
        flipped = [None if t is None else t.flip(-1) for t in (valid, segments)]
        back, _ = recurrence(*(t.flip(2) for t in tensors), k_valid=flipped[0], segments=flipped[1])
        out = out + back.flip(2)
        out = out - both if isinstance(both, Tensor) else out * both
    out = out.to(tensors[2].dtype)
    out = out if norm is None else norm(out)
    return out if state is None else (out, dict(new._asdict()))
