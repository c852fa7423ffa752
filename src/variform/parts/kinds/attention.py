"""Attention of heads, and what it knows beside queries, keys and values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from variform.core.part import Can, Facts, Part
from variform.ops.masks import Mask
from variform.ops.scores import ScoreMod
from variform.parts.beside import Beside
from variform.parts.kinds.streams import State, Streams


@dataclass(slots=True)
class Sides:
    """What a head-level attention knows beside q, k and v.

    Args:
        q_positions: [L] or [B, L] integers; None with `k_positions` None means 0..L-1 on both sides.
        k_positions: the same for the keys.
        q_segments: [B, Lq] document numbers; given together with `k_segments`.
        k_segments: the same for the keys.
        q_valid: [B, Lq] bool, False at padding among the new tokens.
        k_valid: [B, Lk] bool, False at padding among the keys.
        mask: what may attend to what, beyond causality and padding.
        scores: score modifiers, applied in order.
        cache: where new keys go and what they join (decoding); see `variform.stack.state`.
        state: this attention's own decode state; over another sequence what it keeps of the queries' own.
        x: [B, Lq, dim] what the queries were made of, for what depends on a token beyond its q.
        streams: those of the mixer, for attentions that declare what they read.
        published: where an attention puts the streams that it declares to publish; the mixer hands them on.
        beside: further keys and values, of attentions that take them.
    """

    q_positions: Tensor | None = None
    k_positions: Tensor | None = None
    q_segments: Tensor | None = None
    k_segments: Tensor | None = None
    q_valid: Tensor | None = None
    k_valid: Tensor | None = None
    mask: Mask | None = None
    scores: tuple[ScoreMod, ...] = ()
    cache: Mapping[str, Any] | None = None
    state: State | None = None
    x: Tensor | None = None
    streams: Streams | None = None
    published: dict[str, Any] = field(default_factory=dict)
    beside: Beside | None = None


class Attention(Part):
    """A head-level attention.

    Shapes:
        q: [B, H, Lq, D]
        k: [B, Hk, Lk, D], query head i uses key head i // (H // Hk)
        v: [B, Hk, Lk, Dv]
        returns: [B, H, Lq, Dv], or (that, new state) when `sides.state` is given
    """

    kind: ClassVar[str] = "attention"
    takes_scores: ClassVar[bool] = False
    """Whether it has scores that a position bias can change."""
    takes_beside: ClassVar[bool] = False
    """Whether it attends to the keys and values of `Sides.beside` too."""
    takes_positions: ClassVar[bool] = False
    """Whether its weights depend on where a query stands, also among the queries of another sequence."""
    takes_joined: ClassVar[bool] = False
    """Whether it needs no state of its own where its caller joins new keys and values to those before them."""
    of_context: ClassVar[bool] = False
    """Whether it serves cross attention alone."""

    @classmethod
    def scores_taken(cls, args: Facts) -> bool:
        """`takes_scores` with these arguments."""
        return cls.takes_scores

    @classmethod
    def positions_taken(cls, args: Facts) -> bool:
        """`takes_positions` with these arguments."""
        return cls.takes_positions

    @property
    def able(self) -> Can:
        """What this attention can do, as it is filled."""
        return self.can

    @property
    def able_across(self) -> Can:
        """What it can do of what is asked of the keys of another sequence."""
        return self.able

    @classmethod
    def own_abilities(cls, args: Facts) -> Can | None:
        """What it can do with the queries' own sequence, where it reads that beside the keys of another."""
        return None

    @classmethod
    def queries_mixed(cls, args: Facts) -> bool:
        """Whether a query's result depends on other queries with these arguments, even over another sequence."""
        return False

    @classmethod
    def value_size(cls, args: Facts) -> int | None:
        """How many features a value has to have; None where any will do."""
        return None

    @classmethod
    def value_times(cls, args: Facts) -> int:
        """How many times the features of a value it gives for each head."""
        return 1

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend."""

    if TYPE_CHECKING:

        def __call__(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]: ...

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Empty decode state; `like` gives dtype and device."""
        raise NotImplementedError(f"{type(self).__name__} does not decode")

    def own_state(self, batch: int, max_len: int) -> State:
        """What decoding keeps of the queries' own sequence where keys are of another; nothing by default."""
        return {}
