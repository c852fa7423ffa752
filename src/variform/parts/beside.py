"""What a caller may give an attention beside its input: further keys and values, changes of what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Beside(NamedTuple):
    """Further keys and values, which every query sees, whatever masks and positions say, and more for the own ones.

    They come from another model, say, and are neither rotated nor normed. In the streams, `beside` maps mixers to
    them: each takes its own.

    Args:
        k: [B, Hk, M, D], or with as many heads as queries; None for none.
        v: [B, Hk, M, Dv], the same.
        valid: [B, M] bool, False at those not to be seen; None for all.
        added: [B, Lk, dim], added to what the mixer makes its own keys and values of; None for nothing.
    """

    k: Tensor | None = None
    v: Tensor | None = None
    valid: Tensor | None = None
    added: Tensor | None = None


class Deltas(NamedTuple):
    """What is added to the queries, keys and values of a mixer before they are cut into heads, to what its heads give,
    and to its attention weights; None adds nothing. A caller of the mixer itself gives it as the stream `deltas`.

    Args:
        q: [B, L, heads * dim_head].
        k: [B, Lk, kv_heads * dim_head].
        v: [B, Lk, kv_heads * dim_value].
        out: [B, L, heads * dim_value].
        weights: [B, heads, L, Lk].
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    out: Tensor | None = None
    weights: Tensor | None = None


Given = Mapping[object, Beside]
"""The stream `beside`: by mixer."""
