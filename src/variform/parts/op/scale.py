"""Steps that scale: a learned vector along one dimension, and dropout."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.dims import Shape, shape_text
from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.flows import Flow, each_token, unchanged
from variform.parts.kinds import Op

Size = Annotated[int, Field(gt=0)]


@register("scale")
class ScaleOp(Op):
    """y = g * x, with one learned factor for each index of one dimension, starting at 1.

    Over the heads it is the head scaling of NormFormer, over the features its scaled residual (Shleifer et al. 2021,
    arXiv:2110.09456).

    Shapes:
        x: [..., size, ...] -> the same

    Args:
        axis: the dimension; negative ones count from the end.
        size: its size, a number: batches and lengths that are names have none.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, axis: int = -1, size: Size = INHERIT) -> None:
        super().__init__()
        self.axis = axis
        self.gain = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    @classmethod
    def sizes(cls, args: Facts, inputs: tuple[Shape, ...]) -> Facts:
        """The size of the dimension."""
        axis, shape = args.get("axis", -1), inputs[0]
        if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
            return {"size": 1}  # `shapes` says what is wrong
        size = shape[axis]
        return {"size": size if isinstance(size, int) else 1}

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The shape stays; the dimension must have the size that is learned."""
        shape = inputs[0]
        size = shape[place(args["axis"], shape)]
        if not isinstance(size, int):
            hint = "scale the features (the last dimension) or heads, or declare it as a number"
            raise ShapeError(f"a dimension of no known size cannot have learned factors, and this is {size}: {hint}")
        if size != args["size"]:
            raise ShapeError(
                f"there are {args['size']} factors for {size} indices; leave 'size' out to have it inferred"
            )
        return inputs

    def reset_parameters(self) -> None:
        """No scaling."""
        nn.init.ones_(self.gain)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scale."""
        (x,) = inputs
        return x * self.gain.view(-1, *[1] * (x.dim() - 1 - self.axis % x.dim()))

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """Zeros stay; a mask need not, as a factor may be small or negative."""
        (found,) = each_token(self, inputs, outputs)
        return (replace(found, zeroed=inputs[0].zeroed),)


@register("dropout")
class DropoutOp(Op):
    """In training, zeroes each element with probability p and scales the others by 1 / (1 - p) (arXiv:1207.0580).

    Shapes:
        x: [...] -> the same

    Args:
        p: the probability.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, p: Annotated[float, Field(ge=0, lt=1)]) -> None:
        super().__init__()
        self.p = p

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The same shape."""
        return inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        """Drop."""
        return F.dropout(inputs[0], self.p, self.training)

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """What is known stays."""
        return unchanged(inputs, outputs)


def place(axis: int, shape: Shape) -> int:
    """A dimension counted from the front.

    Raises:
        ShapeError: the tensor has no such dimension.
    """
    rank = len(shape)
    if not -rank <= axis < rank:
        hint = f"its dimensions are {-rank} to {rank - 1}" if rank else "it has none"
        raise ShapeError(f"{shape_text(shape)} has no dimension {axis}: {hint}")
    return axis % rank
