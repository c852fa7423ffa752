"""Stochastic depth as a step of a program."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from variform.core.dims import Shape
from variform.core.part import Facts
from variform.core.registry import register
from variform.parts.kinds import Op


@register("drop_path")
class DropPathOp(Op):
    """In training, zeroes each row with probability p and scales the others by 1 / (1 - p) (arXiv:1603.09382).

    On a branch before it joins the residual stream this is stochastic depth.

    Shapes:
        x: [B, ...] -> the same

    Args:
        p: the probability.
    """

    def __init__(self, p: Annotated[float, Field(ge=0, lt=1)]) -> None:
        super().__init__()
        self.keep = 1.0 - p

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The same shape."""
        return inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        """Drop rows."""
        (x,) = inputs
        if not self.training or self.keep == 1.0:
            return x
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        return x * x.new_empty(shape).bernoulli_(self.keep).div_(self.keep)
