"""A gated recurrent cell in the place of the sum."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.ops.blend import blend
from variform.parts.kinds import Residual, Streams
from variform.parts.linear import Linear


@register("gru")
class GRUResidual(Residual):
    """GRU gating (Parisotto et al. 2019, arXiv:1910.06764): the branch is the cell's input, the stream its state.

        r, z = sigmoid(W_r f + U_r x), sigmoid(W_z f + U_z x)
        n = tanh(W_n f + r (U_n x)),  x <- (1 - z) n + z x        with offsets in all six maps

    Args:
        dim: features.
        scaled: the stream has a learned factor a feature before it enters.
    """

    def __init__(self, dim: Annotated[int, Field(gt=0)] = INHERIT, scaled: bool = False) -> None:
        super().__init__()
        self.of_branch = Linear(dim, 3 * dim)
        self.of_stream = Linear(dim, 3 * dim)
        self.scale = nn.Parameter(torch.empty(dim)) if scaled else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A factor of one."""
        if self.scale is not None:
            nn.init.ones_(self.scale)

    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Tensor:
        """One step of the cell for each token."""
        if self.scale is not None:
            x = x * self.scale
        reset_f, update_f, new_f = self.of_branch(branch).chunk(3, -1)
        reset_x, update_x, new_x = self.of_stream(x).chunk(3, -1)
        new = (new_f + (reset_f + reset_x).sigmoid() * new_x).tanh()
        return blend(new, x, (update_f + update_x).sigmoid())
