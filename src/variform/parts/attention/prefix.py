"""Attention over a prefix both ways, and over what follows one way."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from variform.core.inherit import inherit
from variform.core.part import Facts, use
from variform.core.registry import register
from variform.core.spec import described
from variform.errors import Problem
from variform.ops.masks import Causal, Mask, Padding
from variform.parts.attention.around import AroundAttention
from variform.parts.kinds import Attention, Sides, State


@register("prefix")
class PrefixAttention(AroundAttention):
    """Causal attention in which the first tokens of a row see one another both ways (prefix language models, T5,
    Raffel et al. 2019, arXiv:1910.10683).

    The stream `two_way` says how many: all tokens see keys at positions below it, and those at their own and before.
    Without the stream the attention is causal. While decoding the prefix lies in the first call.

    Shapes:
        q, k, v: as the inner attention's; two_way: [B] integers

    Args:
        attention: what attends, with no causal form of its own: the mask is made here.
        causal: whether what follows the prefix sees what is before it alone; without, everything is seen.
    """

    each_alone: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"two_way"})

    def __init__(self, attention: Attention = use("softmax"), causal: bool = inherit(False)) -> None:
        super().__init__()
        self.attention = attention
        self.follows_in_order = causal

    @property
    def causal(self) -> bool:
        """Whether what follows the prefix sees what is before it alone."""
        return self.follows_in_order

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The mask is made here."""
        return {"causal": False}

    @classmethod
    def steps(cls, slot: str) -> bool:
        """The attention inside is not asked whether it is causal."""
        return False

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The attention inside takes the mask as it is."""
        inner = described(facts["attention"])
        if inner is None:
            return []
        if inner.get("causal"):
            return [Problem("attention.causal", "a prefix would be cut by it", True, "leave it out")]
        if not inner.part.abilities(inner.args).attention_mask or "window" in inner.args:
            return [Problem("attention", f"{inner.name!r} does not take the mask of a prefix")]
        return []

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend under the mask."""
        return self.attention(q, k, v, replace(sides, mask=self._mask(sides)))

    def _mask(self, sides: Sides) -> Mask | None:
        if not self.follows_in_order:
            return sides.mask
        length = None if sides.streams is None else sides.streams.get("two_way")
        mask: Mask = Causal() if length is None else Causal() | Padding(length)
        return mask if sides.mask is None else mask & sides.mask
