"""Steps that give a stream a second name, and that make one stream of two."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from variform.core.dims import Dim, Shape
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.flows import Flow, merged, unchanged
from variform.parts.kinds import CONTENTS, Op
from variform.parts.op.pending import PendingScores


@register("copy")
class CopyOp(Op):
    """Gives a tensor a second name. Streams are read-only, so nothing is copied.

    Shapes:
        x: [...] -> the same
    """

    pairwise: ClassVar[bool] = True
    accepts: ClassVar[tuple[frozenset[str], ...]] = (frozenset(CONTENTS),)

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The same shape."""
        return inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        """Pass it on."""
        return inputs[0]

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """What is known stays."""
        return unchanged(inputs, outputs)


@register("merge")
class MergeOp(Op):
    """Two tensors become one: a + b, a * b, a - b, or a and b side by side.

    Shapes:
        a, b: [...] of one shape, sizes of 1 broadcast -> the same; for `cat` the last sizes add up

    Args:
        how: "add", "multiply", "subtract" or "cat".
    """

    arity: ClassVar[int] = 2
    pairwise: ClassVar[bool] = True

    def __init__(self, how: Literal["add", "multiply", "subtract", "cat"] = "add") -> None:
        super().__init__()
        self.how = how
        self.lone = () if how == "cat" else (0, 1)  # type: ignore[misc]  # of this merge, not of the class

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Sizes must agree."""
        a, b = inputs
        if args["how"] == "cat":
            if not a or a[:-1] != b[:-1]:
                raise ShapeError("to stand side by side, all sizes but the last must be equal")
            return ((*a[:-1], a[-1] + b[-1]),)
        longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
        padded = (*longer[: len(longer) - len(shorter)], *shorter)
        return (tuple(_common(m, n, args["how"]) for m, n in zip(longer, padded, strict=True)),)

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """What both hold; scores with a mask are scores, and an open one is what the other is."""
        known = set(contents) - {""}
        if known == {"scores", "mask"}:
            return ("scores",)
        return (known.pop() if len(known) == 1 else "",)

    def forward(self, *inputs: Any) -> Any:
        """Merge; scores may be pending."""
        a, b = inputs
        if isinstance(a, PendingScores) or isinstance(b, PendingScores):
            return a.add(b) if isinstance(a, PendingScores) else b.add(a)
        match self.how:
            case "add":
                return a + b
            case "multiply":
                return a * b
            case "subtract":
                return a - b
        return torch.cat((a, b), dim=-1)

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """An offset that is added to scores may mask them."""
        return merged(self, self.how, inputs, outputs)


def _common(a: int | Dim, b: int | Dim, how: str) -> int | Dim:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    raise ShapeError(f"to {how} two streams their sizes must be equal, and {a} is not {b}")
