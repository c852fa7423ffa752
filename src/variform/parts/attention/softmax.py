"""Softmax attention: over everything, and over a sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.inherit import inherit
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError, did_you_mean
from variform.ops.attention.call import Call
from variform.ops.attention.memory import with_memory
from variform.ops.attention.select import attention, backends
from variform.ops.masks import Causal, Mask, Window
from variform.ops.scores import ScoreMod
from variform.ops.weightings import Normaliser
from variform.parts.attention.kv_cache import buffer_state, join_cache, ring_append, ring_state
from variform.parts.attention.scored import (
    Scorings,
    filled_abilities,
    queries_mixed,
    scored_abilities,
    scoring_problems,
    summed,
)
from variform.parts.kinds import Attention, Memory, Scoring, Sides, State, Weighting

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
        scores: changes of the scores, in order; those of products of queries and keys come before a position bias.
        weights: how scores become weights; softmax when None.
    """

    can: ClassVar[Can] = Can()
    takes_scores: ClassVar[bool] = True
    takes_beside: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        scale: Annotated[float, Field(gt=0)] | None = None,
        backend: str = "auto",
        memory: Memory | None = None,
        scores: Sequence[Scoring] = (),
        weights: Weighting | None = None,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.structure: Mask | None = Causal() if causal else None
        self.dropout = dropout
        self.scale = scale
        self.backend = backend
        self.memory = memory
        self.scores = Scorings(scores) if scores else None
        self.weights = weights
        self._able = filled_abilities(self)

    @property
    def able(self) -> Can:
        """What its scorings and its weighting leave of its abilities."""
        return self._able

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What its scorings and its weighting leave of them."""
        return scored_abilities(cls.can, args)

    @classmethod
    def queries_mixed(cls, args: Facts) -> bool:
        """Whether its weighting mixes queries."""
        return queries_mixed(args)

    @property
    def takes_joined(self) -> bool:  # type: ignore[override]
        """Where no scoring keeps something of each key beside it, or a sum."""
        return self.scores is None or not (self.scores.size or self.scores.accumulates)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The backend exists, and the scorings work here."""
        return backend_problems(facts) + scoring_problems(facts, keeps_all=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything that was cached before as well."""
        structure, scorings = self.structure, self.scores
        if scorings is not None:
            k = scorings.wider(k, sides)
        before, cache = sides.state, sides.cache
        if before is None or cache is None:
            return self._attend(q, k, v, sides, structure, None)[0]
        if q.shape[2] == 1 and cache["start"] is not None and not cache["moved"]:
            structure = None  # every valid cached token lies at or before the one new token
        positioned = structure is not None or sides.mask is not None or bool(sides.scores)
        positioned = positioned or (scorings is not None and scorings.positioned)
        k, v, sides, state = join_cache(k, v, sides, before, cache, positioned)
        out, modifiers = self._attend(q, k, v, sides, structure, before)
        return out, summed(modifiers, state, before)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, sides: Sides, structure: Mask | None, state: State | None
    ) -> tuple[Tensor, tuple[ScoreMod, ...]]:
        weights = None if self.weights is None else self.weights(sides)
        memory = None if self.memory is None else self.memory()
        modifiers = sides.scores
        if self.scores is not None:
            k, kept = self.scores.apart(k)
            if state is not None and self.scores.accumulates:
                kept = self.scores.sums(state, kept, k.shape[2])
            modifiers = self.scores.modifiers(q, k, sides, kept)
        rate = self.dropout if self.training else 0.0
        return attend(q, k, v, sides, structure, self.scale, rate, self.backend, memory, modifiers, weights), modifiers

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Buffers for keys and values; the last slot takes what must not be kept."""
        more = 0 if self.scores is None else self.scores.size // heads
        state = buffer_state(batch, max_len, like, heads, dim_key + more, dim_value)
        if self.scores is not None and self.scores.accumulates:
            state["sum"] = like.new_zeros(batch, max_len + 1)
        return state


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
        memory: keys and values that every query attends to, whatever the window.
        scores: as for softmax attention.
        weights: as for softmax attention.
    """

    can: ClassVar[Can] = Can(cross=False)
    takes_scores: ClassVar[bool] = True
    takes_beside: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        window: Annotated[int, Field(gt=0)],
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        scale: Annotated[float, Field(gt=0)] | None = None,
        backend: str = "auto",
        memory: Memory | None = None,
        scores: Sequence[Scoring] = (),
        weights: Weighting | None = None,
    ) -> None:
        super().__init__()
        side = window // 2
        self.causal = causal
        self.structure: Mask = Causal() & Window(window - 1) if causal else Window(side, side)
        self.window = window
        self.dropout = dropout
        self.scale = scale
        self.backend = backend
        self.memory = memory
        self.scores = Scorings(scores) if scores else None
        self.weights = weights
        self._able = filled_abilities(self)

    @property
    def able(self) -> Can:
        """What its scorings and its weighting leave of its abilities."""
        return self._able

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What its scorings and its weighting leave of them."""
        return scored_abilities(cls.can, args)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """A window around a position has as many places before as after."""
        window, found = facts["window"], backend_problems(facts) + scoring_problems(facts, keeps_all=False)
        if not facts["causal"] and window % 2 == 0:
            message = "a window to both sides is centred on its query: an odd size is needed"
            found.append(Problem("window", message, window, f"nearest: {window - 1} or {window + 1}"))
        return found

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend within the window; with a state, to the ring of the newest cached tokens as well."""
        if self.scores is not None:
            k = self.scores.wider(k, sides)
        if sides.state is None:
            return self._attend(q, k, v, sides)
        k, v, sides, state = ring_append(sides.state, k, v, sides)
        return self._attend(q, k, v, sides), state

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        weights = None if self.weights is None else self.weights(sides)
        memory = None if self.memory is None else self.memory()
        modifiers = sides.scores
        if self.scores is not None:
            k, kept = self.scores.apart(k)
            modifiers = self.scores.modifiers(q, k, sides, kept)
        rate = self.dropout if self.training else 0.0
        return attend(q, k, v, sides, self.structure, self.scale, rate, self.backend, memory, modifiers, weights)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """A ring of the newest `window - 1` tokens with their positions."""
        more = 0 if self.scores is None else self.scores.size // heads
        return ring_state(batch, min(self.window - 1, max_len), like, heads, dim_key + more, dim_value)


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
    modifiers: tuple[ScoreMod, ...] | None = None,
    weights: Normaliser | None = None,
) -> Tensor:
    """Run one softmax attention with everything that `sides` asks for; `modifiers` stand in the place of its scores."""
    if memory is not None and memory[0].shape[-1] != k.shape[-1]:
        size = f"memories have keys of {memory[0].shape[-1]} features, the sequence of {k.shape[-1]}"
        raise ShapeError(f"{size}: attention by distance needs memories 'with_length', and nothing else has them")
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
        scores=sides.scores if modifiers is None else modifiers,
        weights=weights,
        scale=scale,
        dropout=dropout,
    )
    call = call if memory is None else with_memory(call, *memory)
    beside = sides.beside
    if beside is not None and beside.k is not None and beside.v is not None:
        call = with_memory(call, beside.k, beside.v, beside.valid)
    return attention(call, backend)
