"""RMS normalisation that bounds the divisor from below instead of adding to it."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.parts.kinds import Norm

Size = Annotated[int, Field(gt=0)]


@register("clamped_rms_norm")
class ClampedRMSNorm(Norm):
    """y = g * x / max(rms(x), eps), over the last dimension, with g starting at 1.

    With one gain for all features this is ScaleNorm (arXiv:1910.05895) up to the unit of the gain; with one a
    feature it is RMSNorm (arXiv:1910.07467) up to the place of eps.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        dim: size of the last dimension.
        eps: smallest root mean square that is divided by.
        per_feature: learn one gain a feature, else a single one.
    """

    def __init__(
        self, dim: Size = INHERIT, eps: Annotated[float, Field(gt=0)] = 1e-8, per_feature: bool = True
    ) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.gain = nn.Parameter(torch.empty(dim if per_feature else 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain one."""
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise the last dimension; half precision is squared in float32."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        # Not the root of a mean: the gradient of vector_norm at 0 is 0, that of the root is infinite.
        rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * self.dim**-0.5
        y: Tensor = (wide / rms.clamp(min=self.eps)).to(x.dtype) * self.gain.to(x.dtype)
        return y
