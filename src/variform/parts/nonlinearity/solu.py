"""SoLU: features that compete."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import use
from variform.core.registry import register
from variform.parts.kinds import Nonlinearity, Norm


@register("solu")
class SoLU(Nonlinearity):
    """Softmax linear unit (Elhage et al. 2022, transformer-circuits.pub/2022/solu): y = norm(softmax(x) * x).

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        dim: features, over which the softmax runs.
        norm: of the product, which would be small otherwise; None for none.
    """

    def __init__(
        self, dim: Annotated[int, Field(gt=0)] = INHERIT, norm: Norm | None = use("layer_norm", bias=False)
    ) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        y: Tensor = x.softmax(-1) * x
        return y if self.norm is None else self.norm(y)
