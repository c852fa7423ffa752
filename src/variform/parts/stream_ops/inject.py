"""The input of a stack for every branch of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.parts.kinds import Layer, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("inject_input")
class InjectInput(Layer):
    """Publishes what every later branch of the stack gets beside its input: injected <- (W x + injected) sigmoid(w x).

    Put first in a stack, x is the stack's input, which so stays in sight of every layer (input injection of deep
    equilibrium models, Bai et al. 2019, arXiv:1909.01377; also arXiv:2410.03020). What a caller injects
    already is added. The residual stream itself stays as it is.

    Shapes:
        x: [B, L, dim] -> the same; injected: [B, L, dim]

    Args:
        project: add W x; without it only the gate works, on what a caller injects.
        gate: multiply by sigmoid(w x), one factor a token.
        dim: features.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"injected"})

    def __init__(
        self, project: bool = True, gate: bool = False, dim: Size = INHERIT, init_std: float | None = INHERIT
    ) -> None:
        super().__init__()
        self.project = Linear(dim, dim, False, std=init_std) if project else None
        self.gate = Linear(dim, 1, False, std=init_std) if gate else None

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """It does something."""
        if facts["project"] or facts["gate"]:
            return []
        return [Problem("project", "without a projection and a gate nothing is injected", hint="leave the layer out")]

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """What is injected."""
        return ("injected",)

    def forward(self, x: Tensor, streams: Streams) -> Any:
        """Make it of the input."""
        injected: Tensor | None = streams.get("injected")
        if self.project is not None:
            own = self.project(x)
            injected = own if injected is None else own + injected
        if injected is None:
            return x
        if self.gate is not None:
            injected = injected * torch.sigmoid(self.gate(x))
        return x, {"injected": injected}
