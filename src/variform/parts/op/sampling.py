"""Shorter and longer sequences: every n-th token, and several tokens out of one."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.dims import Shape, shape_text
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.kinds import Op
from variform.parts.op.common import NO_STREAMS, divided

Size = Annotated[int, Field(gt=0)]


@register("down_sample")
class DownSample(Op):
    """Keeps every n-th token.

    Shapes:
        x: [B, L, dim] or [B, H, L, dim] -> L becomes (L - start + stride - 1) // stride

    Args:
        stride: n.
        start: the first token kept.
    """

    ordered: ClassVar[bool] = True
    can: ClassVar[Can] = NO_STREAMS

    def __init__(self, stride: Size, start: Annotated[int, Field(ge=0)] = 0) -> None:
        super().__init__()
        self.stride = stride
        self.start = start

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """As many rows as the strided slice has."""
        *batch, length, dim = _sequence("down-sampling", inputs[0])
        stride, start = args["stride"], args["start"]
        if isinstance(length, int) and length <= start:
            raise ShapeError(f"down-sampling starts at token {start}, and there are {length}")
        return ((*batch, (length - start + stride - 1) // stride, dim),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Take the slice."""
        (x,) = inputs
        if x.shape[-2] <= self.start:
            raise ShapeError(f"down-sampling starts at token {self.start}, and there are {x.shape[-2]}")
        return x[..., self.start :: self.stride, :]


@register("up_sample")
class UpSample(Op):
    """Cuts the features of each token into n pieces, which become n tokens in its place.

    Shapes:
        x: [B, L, n * dim] or [B, H, L, n * dim] -> L becomes L * n, the features dim

    Args:
        chunks: n.
    """

    ordered: ClassVar[bool] = True
    can: ClassVar[Can] = NO_STREAMS

    def __init__(self, chunks: Size) -> None:
        super().__init__()
        self.chunks = chunks

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Length is multiplied, features are divided."""
        *batch, length, dim = _sequence("up-sampling", inputs[0])
        return ((*batch, length * args["chunks"], divided(dim, args["chunks"], "chunks")),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Reshape."""
        (x,) = inputs
        *batch, length, dim = x.shape
        return x.reshape(*batch, length * self.chunks, dim // self.chunks)


def _sequence(what: str, shape: Shape) -> Shape:
    if len(shape) not in (3, 4):
        raise ShapeError(f"{what} takes [B, L, dim] or [B, H, L, dim], not {shape_text(shape)}")
    return shape
