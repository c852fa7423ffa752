"""Several heads side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.dims import Shape
from variform.core.part import Facts
from variform.core.registry import register
from variform.core.spec import described
from variform.errors import Problem
from variform.parts.kinds import Head, Streams


@register("joined")
class JoinedHead(Head):
    """The answers of several heads, one behind the other: [h_1(x); h_2(x); ...].

    For several kinds of tokens at once, or logits and a number.

    Shapes:
        x: [B, L, dim] -> [B, L, n_1 + n_2 + ...], where head i gives [B, L, n_i]

    Args:
        parts: the heads; all answer a token, or all a sequence.
    """

    def __init__(self, parts: Sequence[Head]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """There is something to join, and it has as many axes."""
        if not facts["parts"]:
            return [Problem("parts", "at least one head is needed")]
        shapes = [cls._shape(part, ("B", "L", facts.get("dim", 1))) for part in facts["parts"]]
        if len({len(shape) for shape in shapes}) > 1:
            return [Problem("parts", "some heads answer each token, others the whole sequence; take one kind")]
        return []

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """The sizes of the answers added up."""
        shapes = [cls._shape(part, x) for part in args["parts"]]
        total: Any = sum(shape[-1] for shape in shapes)
        return (*shapes[0][:-1], total)

    @staticmethod
    def _shape(part: Any, x: Any) -> Shape:
        inner = described(part)
        shape: Shape = inner.part.out_shape(inner.args, x)
        return shape

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Ask every head."""
        return torch.cat([part(x, streams) for part in self.parts], -1)
