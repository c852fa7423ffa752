"""Fourier transforms in place of attention."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Can, Cost, Facts
from variform.core.registry import register
from variform.errors import Problem, nearest_divisors
from variform.ops.fourier import fourier_flops, fourier_mix
from variform.parts.grid import refuse_unable
from variform.parts.kinds import Mixer, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@register("fourier_mix")
class FourierMix(Mixer):
    """FNet's mixing (Lee-Thorp et al. 2021, arXiv:2105.03824): y = Re(F_L x F_D).

    F_L and F_D are discrete Fourier transforms over tokens and features. Each output depends on all inputs and on
    their number, so that it can be neither causal nor padded.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        dim: features in and out.
        groups: sets of neighbouring features, each transformed on its own; FNet has one.
        project: a linear map after the transforms, which FNet has not.
        bias: that map has an offset.
        dropout: probability of zeroing a transformed feature, in training.
        init_std: standard deviation of the initial weights; torch's default when None.
        writes: residual writes of the model, for the initial scale of the linear map.
    """

    can: ClassVar[Can] = Can(False, False, False, False, False, decode=False)

    def __init__(
        self,
        dim: Size = INHERIT,
        groups: Size = 1,
        project: bool = False,
        bias: bool = True,
        dropout: Rate = 0.0,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.dropout = dropout
        self.out = Linear(dim, dim, bias, std=init_std, writes=writes) if project else None

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Groups divide the features."""
        dim, groups = facts["dim"], facts["groups"]
        if dim % groups == 0:
            return []
        return [Problem("groups", f"must divide dim = {dim}", groups, nearest_divisors(dim, groups))]

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Mix all tokens and features."""
        refuse_unable(self, streams)
        y = fourier_mix(x, self.groups)
        if self.dropout and self.training:
            y = F.dropout(y, self.dropout)
        return y if self.out is None else self.out(y)

    def cost(self, *args: Any, **kwargs: Any) -> Cost | None:
        """The transforms by formula; their backward pass is a transform of the same size."""
        batch, length, dim = args[0].shape
        mixing = batch * self.groups * fourier_flops(length, dim // self.groups)
        mapping = 0 if self.out is None else 2 * batch * length * dim * dim
        return Cost(mixing + mapping, mixing + mapping, mixing + 2 * mapping)
