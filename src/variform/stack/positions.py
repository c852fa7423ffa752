"""The positions of tokens as a step of a program."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from variform.core.dims import Shape, shape_text
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.kinds import Op
from variform.stack.state import count_positions


@register("count_positions")
class CountPositions(Op):
    """Positions 0, 1, ... over the valid tokens of each row, anew in each segment, as models count them.

    So padding on either side changes no real token, and documents in one row do not push one another back.

    Shapes:
        valid: [B, L] bool; segments: [B, L] integers -> [B, L] integers

    Args:
        given: what it reads: "valid", "segments", or "both" in this order.
    """

    arity: ClassVar[int | None] = None
    ids: ClassVar[tuple[int, ...]] = (1,)
    accepts: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"mask", "ids"}), frozenset({"ids"}))
    can: ClassVar[Can] = Can(decode=False)

    def __init__(self, given: Literal["valid", "segments", "both"] = "valid") -> None:
        super().__init__()
        self.given = given

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """One position a token."""
        wanted = 2 if args["given"] == "both" else 1
        if len(inputs) != wanted:
            raise ShapeError(f"positions of {args['given']!r} are counted from {wanted} streams, not {len(inputs)}")
        for shape in inputs:
            if len(shape) != 2 or shape != inputs[0]:
                raise ShapeError(f"positions are counted along [B, L], not {' and '.join(map(shape_text, inputs))}")
        return inputs[:1]

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """Integers."""
        return ("ids",)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Count."""
        valid = None if self.given == "segments" else inputs[0]
        counted = count_positions(valid, None if self.given == "valid" else inputs[-1])
        assert counted is not None
        return counted
