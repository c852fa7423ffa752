"""Features bounded smoothly."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from variform.core.registry import register
from variform.parts.kinds import Norm


@register("soft_clamp")
class SoftClamp(Norm):
    """y = norm(c tanh(x / c)): features are bounded by c, then normed (Gemma 2, arXiv:2408.00118, bounds logits so).

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        value: the bound c.
        norm: what norms the bounded features; None leaves them.
    """

    def __init__(self, value: Annotated[float, Field(gt=0)] = 30.0, norm: Norm | None = None) -> None:
        super().__init__()
        self.value = value
        self.norm = norm

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Bound, and norm."""
        x = (x / self.value).tanh() * self.value
        return x if self.norm is None else self.norm(x, condition)
