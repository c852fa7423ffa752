"""Functions of the two branches of a gated unit."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.parts.kinds import Gate, Nonlinearity

Size = Annotated[int, Field(gt=0)]


@register("branches")
class Branches(Gate):
    """A nonlinearity for each branch, and a learned factor: g <- f(g), u <- gain * h(u).

    In a `glu` the product is then gain * act(f(W_g x)) * h(W_u x).

    Shapes:
        gate, up: [..., dim] -> the same

    Args:
        dim: features of a branch.
        gate: f, on the branch that the activation is applied to; None for none.
        up: h, on the other; None for none.
        gain: learn a factor a feature, from 1 on.
    """

    def __init__(
        self,
        dim: Size = INHERIT,
        gate: Nonlinearity | None = None,
        up: Nonlinearity | None = None,
        gain: bool = False,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.up = up
        self.gain = nn.Parameter(torch.empty(dim)) if gain else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Factors of one."""
        if self.gain is not None:
            nn.init.ones_(self.gain)

    def forward(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Apply to each branch."""
        if self.gate is not None:
            gate = self.gate(gate)
        if self.up is not None:
            up = self.up(up)
        return gate, up if self.gain is None else up * self.gain
