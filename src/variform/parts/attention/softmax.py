"""Softmax attention: over everything, and over a sliding window."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.inherit import inherit
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem, did_you_mean
from variform.ops.attention.call import Call
from variform.ops.attention.memory import with_memory
from variform.ops.attention.select import attention, backends
from variform.ops.masks import Causal, Mask, Window
from variform.parts.attention.kv_cache import join_cache, ring_append, ring_state
from variform.parts.kinds import Attention, Memory, Sides, State

Rate = Annotated[float, Field(ge=0, lt=1)]


@register("softmax")
class SoftmaxAttention(Attention):
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762): softmax(Q K^T / sqrt(D) + bias) V.

    Serves multi-head, grouped-query (arXiv:2305.13245) and multi-query (arXiv:1911.02150) attention: query head i
    uses key head i // (H / Hk). A query that may attend to nothing gets zeros.

    Shapes:
        q: [B, H, Lq, D], k: [B, Hk, Lk, D], v: [B, Hk, Lk, Dv] -> [B, H, Lq, Dv]

    Args:
        causal: position i attends to positions <= i.
        dropout: probability of dropping an attention weight, in training.
        scale: factor on Q K^T; D^-0.5 by default.
        backend: "auto" takes the fastest implementation that computes this very function; a name is served or
            refused (`vf.explain` lists them).
        memory: keys and values that every query attends to, whatever the masks say.
    """

    can: ClassVar[Can] = Can()
    takes_scores: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        scale: Annotated[float, Field(gt=0)] | None = None,
        backend: str = "auto",
        memory: Memory | None = None,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.structure: Mask | None = Causal() if causal else None
        self.dropout = dropout
        self.scale = scale
        self.backend = backend
        self.memory = memory

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The backend exists."""
        return backend_problems(facts)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything that was cached before as well."""
        structure = self.structure
        if sides.state is None or sides.cache is None:
            return self._attend(q, k, v, sides, structure)
        cache = sides.cache
        if q.shape[2] == 1 and cache["start"] is not None and not cache["moved"]:
            structure = None  # every valid cached token lies at or before the one new token
        positioned = structure is not None or sides.mask is not None or bool(sides.scores)
        k, v, sides, state = join_cache(k, v, sides, sides.state, cache, positioned)
        return self._attend(q, k, v, sides, structure), state

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides, structure: Mask | None) -> Tensor:
        memory = None if self.memory is None else self.memory()
        return attend(q, k, v, sides, structure, self.scale, self.dropout_now(), self.backend, memory)

    def dropout_now(self) -> float:
        """The dropout rate that applies to this call."""
        return self.dropout if self.training else 0.0

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Buffers for keys and values; the last slot takes what must not be kept."""
        return {
            "k": like.new_zeros(batch, heads, max_len + 1, dim_key),
            "v": like.new_zeros(batch, heads, max_len + 1, dim_value),
        }


@register("local")
class LocalAttention(Attention):
    """Softmax attention in a sliding window (Longformer, Beltagy et al. 2020, arXiv:2004.05150).

    Causal: position i attends to i - window + 1 .. i. Otherwise to both sides, `window` positions in all (odd).

    Shapes:
        q, k, v: as for softmax attention, with Lq == Lk

    Args:
        window: how many positions a query sees, its own included.
        causal: only the past.
        dropout: probability of dropping an attention weight, in training.
        scale: factor on Q K^T; D^-0.5 by default.
        backend: as for softmax attention.
    """

    can: ClassVar[Can] = Can(cross=False)
    takes_scores: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        window: Annotated[int, Field(gt=0)],
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        scale: Annotated[float, Field(gt=0)] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        side = window // 2
        self.causal = causal
        self.structure: Mask = Causal() & Window(window - 1) if causal else Window(side, side)
        self.window = window
        self.dropout = dropout
        self.scale = scale
        self.backend = backend

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """A window around a position has as many places before as after."""
        window, found = facts["window"], backend_problems(facts)
        if not facts["causal"] and window % 2 == 0:
            message = "a window to both sides is centred on its query: an odd size is needed"
            found.append(Problem("window", message, window, f"nearest: {window - 1} or {window + 1}"))
        return found

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend within the window; with a state, to the ring of the newest cached tokens as well."""
        dropout = self.dropout if self.training else 0.0
        if sides.state is None:
            return attend(q, k, v, sides, self.structure, self.scale, dropout, self.backend)
        k, v, sides, state = ring_append(sides.state, k, v, sides)
        return attend(q, k, v, sides, self.structure, self.scale, dropout, self.backend), state

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """A ring of the newest `window - 1` tokens with their positions."""
        return ring_state(batch, min(self.window - 1, max_len), like, heads, dim_key, dim_value)


def backend_problems(facts: Facts) -> list[Problem]:
    """A backend asked for by name must exist; whether it serves a call is known when the call is made."""
    name, known = facts["backend"], ["auto", *backends()]
    if name in known:
        return []
    return [Problem("backend", "there is no such attention backend", name, did_you_mean(name, known))]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sides: Sides,
    structure: Mask | None,
    scale: float | None,
    dropout: float,
    backend: str,
    memory: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Run one softmax attention with everything that `sides` asks for."""
    call = Call(
        q,
        k,
        v,
        structure=structure,
        mask=sides.mask,
        q_positions=sides.q_positions,
        k_positions=sides.k_positions,
        q_segments=sides.q_segments,
        k_segments=sides.k_segments,
        k_valid=sides.k_valid,
        scores=sides.scores,
        scale=scale,
        dropout=dropout,
    )
    return attention(call if memory is None else with_memory(call, *memory), backend)
