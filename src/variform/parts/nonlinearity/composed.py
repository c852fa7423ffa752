"""Nonlinearities one after another, and a module of the user's."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.parts.activation import ACTIVATIONS, Activation
from variform.parts.kinds import Nonlinearity


@register("chain")
class Chain(Nonlinearity):
    """Nonlinearities in order, the last after all others: y = f_n(... f_1(x)).

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        functions: f_1 ... f_n.
    """

    def __init__(self, functions: Sequence[Nonlinearity]) -> None:
        super().__init__()
        self.functions = nn.ModuleList(functions)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """There is one at least."""
        return [] if facts["functions"] else [Problem("functions", "at least one is needed", facts["functions"])]

    def forward(self, x: Tensor) -> Tensor:
        """Apply all."""
        for function in self.functions:
            x = function(x)
        return x


@register("function")
class Function(Nonlinearity):
    """An activation by name, where a nonlinearity is wanted.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        activation: its name.
    """

    def __init__(self, activation: Activation = "gelu") -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return self.act(x)


@register("user_module")
class UserModule(Nonlinearity):
    """A copy of a module of the user's own, that keeps the shape of its input.

    A config that holds one builds, and cannot be saved: register a part and name it instead.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        module: the module; copied, with its weights as they are.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        y: Tensor = self.module(x)
        return y
