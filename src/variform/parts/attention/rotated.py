"""Any attention over rotated queries and keys: positions of a context, in cross attention."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from variform.core.part import Facts, use
from variform.core.registry import register
from variform.core.spec import Spec
from variform.errors import Problem
from variform.parts.attention.around import AroundAttention
from variform.parts.kinds import Attention, Rotation, Sides, State


@register("rotated")
class RotatedAttention(AroundAttention):
    """Rotates queries and the context's keys to their positions, then attends: y = attention(R(p_q) q, R(p_k) k, v).

    For cross attention whose keys stand where the stream `context_positions` says; without that stream both stay as
    they are. (Self-attention has a rotation of its own.)

    Shapes:
        q, k, v: as for the inner attention

    Args:
        rotation: position code that rotates q and k, without changing how many features they have.
        attention: the inner one.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"context_positions"})
    of_context: ClassVar[bool] = True

    def __init__(self, rotation: Rotation, attention: Attention = use("softmax")) -> None:
        super().__init__()
        self.attention = attention
        self.rotation = rotation

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Queries whose keys are not placed have their features as they are."""
        rotation = facts["rotation"]
        if isinstance(rotation, Spec) and getattr(rotation.part, "widening", 1) != 1:
            return [Problem("rotation", "it gives other features than those that are not rotated", rotation.name)]
        return []

    @classmethod
    def positions_taken(cls, args: Facts) -> bool:
        """It goes by positions, whatever the inner attention does."""
        return True

    @property
    def takes_positions(self) -> bool:  # type: ignore[override]
        """It goes by positions, whatever the inner attention does."""
        return True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Rotate and attend."""
        if sides.k_positions is not None:
            q, k = self.rotation(q, k, sides.q_positions, sides.k_positions)
        return self.attention(q, k, v, sides)
