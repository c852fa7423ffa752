"""Random masks as functions: a pair is kept or not by a hash of its two positions and a seed.

Nothing is stored, any length works, a longer sequence keeps what a shorter one had, and cached decoding sees the very
pairs that training saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from variform.errors import ConfigError
from variform.ops.masks.base import Mask
from variform.ops.masks.view import View

__all__ = ["Random", "RandomBy", "RandomLinks"]

_WORD = 0xFFFFFFFF
_BITS = 31
_QUERIES, _KEYS, _LINKS = 0x9E3779B9, 0x7F4A7C15, 0x2545F491
"""Constants that tell the streams of numbers apart."""


@dataclass(frozen=True, eq=False, repr=False)
class Random(Mask):
    """Each pair of positions is kept with probability `share`, the same for every row and head.

    Args:
        share: probability of a pair, in [0, 1].
        seed: equal seeds keep equal pairs.
    """

    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"Random(share={self.share}): a probability lies in [0, 1]")

    def _visit(self, view: View) -> Tensor:
        return _kept(view, self.share, self.seed)


@dataclass(frozen=True, eq=False, repr=False)
class RandomBy(Mask):
    """`Random`, with a seed that is a tensor: drawn anew at each call, or part of a compiled graph.

    Shapes: seed `[]`, an integer.
    """

    share: float
    seed: Tensor
    _leaves: ClassVar[tuple[str, ...]] = ("seed",)

    def _visit(self, view: View) -> Tensor:
        return _kept(view, self.share, view.lift(self.seed))


def _kept(view: View, share: float, seed: Any) -> Tensor:
    """A word a position; both halves of the product of two decide, five operations a pair."""
    rows = _mixed((view.q_pos.long() ^ _mixed((seed ^ _QUERIES) & _WORD)) & _WORD) >> 1
    columns = _mixed((view.k_pos.long() ^ _mixed((seed ^ _KEYS) & _WORD)) & _WORD) >> 1
    product: Tensor = rows * columns
    return ((product ^ (product >> _BITS)) & (1 << _BITS) - 1) < round(share * (1 << _BITS))


@dataclass(frozen=True, eq=False, repr=False)
class RandomLinks(Mask):
    """Each position is linked with `count` earlier ones, or its own, drawn at random; linked positions see each other.

    A position later than `count` has that many distinct ones, one from each of `count` equal parts of its past.
    With `Causal() &` only the draws of the query itself remain.

    Args:
        count: how many positions each draws.
        seed: equal seeds draw equal links.
    """

    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"RandomLinks(count={self.count}): must be >= 0")

    def _visit(self, view: View) -> Tensor:
        hit = view.q_pos != view.q_pos
        for draw in range(self.count):
            hit = hit | (view.k_pos == self._drawn(view.q_pos, draw)) | (view.q_pos == self._drawn(view.k_pos, draw))
        return hit & (view.k_pos == view.k_pos)

    def _drawn(self, positions: Tensor, draw: int) -> Tensor:
        """The draw-th position that each position is linked with."""
        past = positions.long() + 1
        first, end = past * draw // self.count, past * (draw + 1) // self.count
        word: Tensor = _mixed((positions.long() ^ _mixed((self.seed ^ _LINKS * (draw + 1)) & _WORD)) & _WORD)
        return first + ((word >> 1) * (end - first) >> _BITS)


def _mixed(word: Any) -> Any:
    """A 32-bit word with every bit depending on every bit; 59 bits are the most that a step needs."""
    word = (word ^ (word >> 16)) * 0x45D9F3B & _WORD
    word = (word ^ (word >> 16)) * 0x45D9F3B & _WORD
    return word ^ (word >> 16)
