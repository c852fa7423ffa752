"""What keys and values are made of, what stands beside them, and what turns them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from variform.core.part import Part


class Rotation(Part):
    """Rotates queries and keys by their positions: `forward(q, k, q_positions, k_positions) -> (q, k)`.

    Shapes:
        q: [B, H, Lq, D], k: [B, Hk, Lk, D]; positions: [L] or [B, L] integers, None means 0..L-1
        returns: the same, or `widening` times as many features
    """

    kind: ClassVar[str] = "rotation"
    follows: ClassVar[frozenset[str]] = frozenset({"dim_head"})
    widening: ClassVar[int] = 1
    """How many features of a query or key come from each."""

    @abstractmethod
    def forward(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rotate both sides to their positions."""

    def reach(self, ahead: int) -> None:
        """Be ready for so many positions beyond `max_seq_len`: what stands before the tokens does not count there."""

    if TYPE_CHECKING:

        def __call__(
            self, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
        ) -> tuple[Tensor, Tensor]: ...


class Memory(Part):
    """Keys and values beside those of the sequence: `forward() -> (k, v)`, [Hk, M, D] and [Hk, M, Dv]."""

    kind: ClassVar[str] = "memory"
    follows: ClassVar[frozenset[str]] = frozenset({"kv_heads", "dim_head"})

    @abstractmethod
    def forward(self) -> tuple[Tensor, Tensor]:
        """The keys and values."""


class KeyValues(Part):
    """How keys and values are made of tokens: `forward(of_k, of_v) -> (first, second)`, then `expand` to k and v.

    Decoding keeps `first` and `second` of each token, [B, heads, L, features] each. Where they are the keys and values
    themselves, the attention keeps them; where they are smaller (`compressed`), the mixer does, unless the
    attention has to keep something of each key itself.

    Shapes:
        of_k, of_v: [B, L, inputs]

    Attributes:
        dim_value: features of a value.
    """

    kind: ClassVar[str] = "key_values"
    follows: ClassVar[frozenset[str]] = frozenset({"inputs", "kv_heads", "dim_head", "dim_value"})
    compressed: ClassVar[bool] = False
    dim_value: int

    @abstractmethod
    def forward(self, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of each token; of_k and of_v are one tensor but where they are views of their own."""

    def expand(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, Hk, L, dim_head] and values [B, Hk, L, dim_value]."""
        return first, second

    if TYPE_CHECKING:

        def __call__(self, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]: ...
