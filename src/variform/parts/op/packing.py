"""Groups of tokens as rows of the batch, and rows of the batch as tokens or features."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.dims import Dim, Shape
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.kinds import Op
from variform.parts.op.common import NO_STREAMS, ranked

Size = Annotated[int, Field(gt=0)]

REGROUPED = replace(NO_STREAMS, lengths=False)
"""What steps that regroup rows can do: not every length falls into groups."""


@register("pack_batch")
class PackBatch(Op):
    """Cuts each sequence into groups of g tokens; each group becomes a row of its own.

    Shapes:
        x: [B, L, dim] -> [B * (L // g), g, dim]

    Args:
        group: g, which must divide L.
    """

    ordered: ClassVar[bool] = True
    can: ClassVar[Can] = REGROUPED

    def __init__(self, group: Size = 10) -> None:
        super().__init__()
        self.group = group

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The batch is multiplied by the number of groups."""
        batch, length, dim = ranked("packing", inputs[0], "[B, L, dim]")
        group = args["group"]
        if isinstance(length, int) and length % group:
            raise ShapeError(f"groups of {group} tokens do not fill {length} tokens")
        return ((batch * (length // group), group, dim),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Reshape."""
        (x,) = inputs
        if x.shape[1] % self.group:
            raise ShapeError(f"groups of {self.group} tokens do not fill {x.shape[1]} tokens: pad the sequence")
        return x.reshape(-1, self.group, x.shape[2])


@register("unpack_batch")
class UnpackBatch(Op):
    """Puts the tokens of n rows one after another: undoes packing into n groups.

    Shapes:
        x: [B * n, L, dim] -> [B, n * L, dim]

    Args:
        groups: n; all rows by default, so that one is left.
    """

    ordered: ClassVar[bool] = True
    can: ClassVar[Can] = REGROUPED

    def __init__(self, groups: Size | None = None) -> None:
        super().__init__()
        self.groups = groups

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The batch is divided, the length multiplied."""
        rows, length, dim = ranked("unpacking", inputs[0], "[B * n, L, dim]")
        batch, groups = shared_out(rows, args["groups"])
        return ((batch, groups * length, dim),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Reshape."""
        return grouped(inputs[0], self.groups).flatten(1, 2)


@register("batch_to_features")
class BatchToFeatures(Op):
    """Puts the features of n rows side by side, token by token.

    After packing, place i holds the features of the i-th tokens of all groups, later ones too: no causal step.

    Shapes:
        x: [B * n, L, dim] -> [B, L, n * dim]

    Args:
        groups: n; all rows by default, so that one is left.
    """

    ordered: ClassVar[bool] = True
    can: ClassVar[Can] = replace(REGROUPED, causal=False)

    def __init__(self, groups: Size | None = None) -> None:
        super().__init__()
        self.groups = groups

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The batch is divided, the features multiplied."""
        rows, length, dim = ranked("moving rows to features", inputs[0], "[B * n, L, dim]")
        batch, groups = shared_out(rows, args["groups"])
        return ((batch, length, groups * dim),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Reshape."""
        return grouped(inputs[0], self.groups).transpose(1, 2).flatten(2)


@register("unpack_features")
class UnpackFeatures(Op):
    """Cuts the features of each token into pieces and puts them one after another, all first pieces first.

    After `batch_to_features` this gives the tokens of all groups in their order.

    Shapes:
        x: [B, L, n * out] -> [B, n * L, out]

    Args:
        out: features of a piece.
    """

    ordered: ClassVar[bool] = True
    can: ClassVar[Can] = NO_STREAMS

    def __init__(self, out: Size = 64) -> None:
        super().__init__()
        self.out = out

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The features are divided, the length is multiplied."""
        batch, length, dim = ranked("unpacking features", inputs[0], "[B, L, n * out]")
        pieces = evenly(dim, args["out"], "features")
        return ((batch, pieces * length, args["out"]),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Reshape."""
        (x,) = inputs
        batch, length, dim = x.shape
        return x.reshape(batch, length, dim // self.out, self.out).transpose(1, 2).flatten(1, 2)


def shared_out(rows: int | Dim, groups: int | None) -> tuple[int | Dim, int | Dim]:
    """Batch and number of groups of `B * n` rows."""
    return (1, rows) if groups is None else (evenly(rows, groups, "rows"), groups)


def evenly(size: int | Dim, by: int, what: str) -> int | Dim:
    """A size divided; refused where that leaves a rest, or may."""
    part = size // by
    if part * by != size:
        raise ShapeError(f"{size} {what} are not a multiple of {by}")
    return part


def grouped(x: Tensor, groups: int | None) -> Tensor:
    """[B * n, L, dim] -> [B, n, L, dim]."""
    return x.unsqueeze(0) if groups is None else x.reshape(x.shape[0] // groups, groups, *x.shape[1:])
