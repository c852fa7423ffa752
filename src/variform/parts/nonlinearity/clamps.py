"""Smooth bounds: a soft clamp, and GELU and SiLU whose linear factor is bounded."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from variform.core.registry import register
from variform.parts.kinds import Nonlinearity

Positive = Annotated[float, Field(gt=0)]


def soft_clamp(x: Tensor, value: float) -> Tensor:
    """value * tanh(x / value): the identity near 0, bounded by +-value (Gemma 2, arXiv:2408.00118)."""
    return torch.tanh(x / value) * value


@register("soft_clamp")
class SoftClamp(Nonlinearity):
    """y = v tanh(x / v): the identity near 0, bounded by +-v (Gemma 2, arXiv:2408.00118).

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        value: v, the bound.
    """

    def __init__(self, value: Positive) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """Bound."""
        return soft_clamp(x, self.value)


@register("soft_clamped")
class SoftClamped(Nonlinearity):
    """GELU or SiLU with a bounded linear factor: y = v tanh(x / v) s(x), s the normal or the logistic distribution.

    Both activations are x s(x); they are the limit of large v.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        value: v, the bound.
        activation: whose s.
    """

    def __init__(self, value: Positive, activation: Literal["gelu", "silu"] = "silu") -> None:
        super().__init__()
        self.value = value
        self.normal = activation == "gelu"

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return soft_clamp(x, self.value) * (torch.special.ndtr(x) if self.normal else torch.sigmoid(x))
