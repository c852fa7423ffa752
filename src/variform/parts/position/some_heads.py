"""A rotation of some heads alone."""

from __future__ import annotations

import torch
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.core.spec import described
from variform.errors import Problem
from variform.parts.kinds import Rotation


@register("some_heads")
class SomeHeads(Rotation):
    """Rotates some heads, and leaves the others without positions.

    A product depends on the distance of two positions alone where a query and the key that it meets are both rotated
    or both not.

    Shapes:
        q: [B, heads, L, D], k: [B, kv_heads, L, D] -> the same

    Args:
        rotation: of those heads.
        q_heads: which query heads are rotated.
        k_heads: which key heads are.
        heads: number of query heads.
        kv_heads: number of key heads.
    """

    def __init__(
        self,
        rotation: Rotation,
        q_heads: tuple[int, ...],
        k_heads: tuple[int, ...],
        heads: int = INHERIT,
        kv_heads: int = INHERIT,
    ) -> None:
        super().__init__()
        self.rotation = rotation
        self.q_heads, self.q_order = list(q_heads), _order(q_heads, heads)
        self.k_heads, self.k_order = list(k_heads), _order(k_heads, kv_heads)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The heads exist, each is named once, and all heads keep one size."""
        found = []
        for name, count in (("q_heads", facts["heads"]), ("k_heads", facts["kv_heads"])):
            given = facts[name]
            if len(set(given)) != len(given) or not all(0 <= head < count for head in given) or not given:
                found.append(Problem(name, f"some heads of 0..{count - 1} are needed, each once", given))
        if described(facts["rotation"]).part.widening != 1:
            found.append(Problem("rotation", "heads that are rotated would have more features than the others"))
        return found

    def forward(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rotate the heads that are named."""
        turned_q, turned_k = self.rotation(q[:, self.q_heads], k[:, self.k_heads], q_positions, k_positions)
        return _joined(q, turned_q, self.q_order), _joined(k, turned_k, self.k_order)


def _order(chosen: tuple[int, ...], heads: int) -> list[int]:
    """Where every head stands in all heads followed by the chosen ones again."""
    return [heads + chosen.index(head) if head in chosen else head for head in range(heads)]


def _joined(x: Tensor, turned: Tensor, order: list[int]) -> Tensor:
    return torch.cat((x, turned), 1)[:, order]
