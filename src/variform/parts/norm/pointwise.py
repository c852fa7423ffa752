"""Pointwise functions in the place of a norm: a tanh or an erf of adjustable slope."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.parts.kinds import Norm

Size = Annotated[int, Field(gt=0)]


@register("dynamic_tanh")
class DynamicTanh(Norm):
    """Dynamic tanh (Zhu et al. 2025, arXiv:2503.10622): y = weight * tanh(alpha x) + bias.

    No statistics of x are taken: each feature is squashed for itself.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        dim: size of the last dimension.
        alpha: initial slope, one learned number.
    """

    def __init__(self, dim: Size = INHERIT, alpha: float = 0.5) -> None:
        super().__init__()
        self.initial = alpha
        self.alpha = nn.Parameter(torch.empty(()))
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial slope, gain one, offset zero."""
        nn.init.constant_(self.alpha, self.initial)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Squash every feature."""
        dtype = x.dtype
        return torch.tanh(self.alpha.to(dtype) * x) * self.weight.to(dtype) + self.bias.to(dtype)


@register("derf")
class Derf(Norm):
    """Dynamic erf (Chen et al. 2025, arXiv:2512.10938): y = weight * erf(alpha x + shift) + bias.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        dim: size of the last dimension.
        alpha: initial slope, one learned number.
        shift: initial shift, one learned number.
    """

    def __init__(self, dim: Size = INHERIT, alpha: float = 0.5, shift: float = 0.0) -> None:
        super().__init__()
        self.initial = (alpha, shift)
        self.alpha = nn.Parameter(torch.empty(()))
        self.shift = nn.Parameter(torch.empty(()))
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial slope and shift, gain one, offset zero."""
        nn.init.constant_(self.alpha, self.initial[0])
        nn.init.constant_(self.shift, self.initial[1])
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Squash every feature."""
        dtype = x.dtype
        squashed = torch.erf(self.alpha.to(dtype) * x + self.shift.to(dtype))
        return squashed * self.weight.to(dtype) + self.bias.to(dtype)
