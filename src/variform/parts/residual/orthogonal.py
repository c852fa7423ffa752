"""The part of a branch that is orthogonal to the stream."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.parts.kinds import Residual, Streams


@register("orthogonal")
class OrthogonalResidual(Residual):
    """Orthogonal residual update (Oh et al. 2025, arXiv:2505.11881): x <- x + f - (f . x / x . x) x, for each token.

    Where x is zero, f is added whole. Products are summed in float32 at least.

    Args:
        dim: features.
        scaled: the stream has a learned factor a feature first.
    """

    def __init__(self, dim: Annotated[int, Field(gt=0)] = INHERIT, scaled: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim)) if scaled else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A factor of one."""
        if self.scale is not None:
            nn.init.ones_(self.scale)

    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Tensor:
        """Take the share along the stream out, and add the rest."""
        if self.scale is not None:
            x = x * self.scale
        wide = torch.promote_types(x.dtype, torch.float32)
        stream, added = x.to(wide), branch.to(wide)
        along = (added * stream).sum(-1, keepdim=True)
        squared = stream.square().sum(-1, keepdim=True).clamp(min=torch.finfo(wide).tiny)
        return (stream + added - along / squared * stream).to(x.dtype)
