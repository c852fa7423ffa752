"""A linear map that knows how it is initialised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from variform.ops.products import linear
from variform.ops.recompute import Cheap


class Linear(nn.Linear):
    """`y = x W^T + b`, initialised from N(0, std^2) with a zero bias when `std` is given, else as torch does.

    Args:
        inputs: features in.
        outputs: features out.
        bias: add a learned bias.
        std: standard deviation of the initial weights; None leaves torch's uniform default.
        writes: number of residual writes N in the model; a map that writes to the residual stream divides its
            `std` by sqrt(N), so that the stream's variance does not grow with depth (GPT-2).
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, *, std: float | None = None, writes: int | None = None
    ) -> None:
        self.std = std if std is None or writes is None else std / math.sqrt(writes)
        super().__init__(inputs, outputs, bias)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the map."""
        # The dict, because a step of decoding would look up a hundred attributes, each by a function call.
        own: dict[str, Any] = self._parameters
        try:
            weight, bias = own["weight"], own["bias"]
        except KeyError:  # parametrised, pruned or sharded
            weight, bias = self.weight, self.bias
        return linear(input, weight, bias)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def reset_parameters(self) -> None:
        """Draw the initial parameters."""
        if self.std is None:
            super().reset_parameters()
            return
        with torch.no_grad():
            nn.init.normal_(self.weight, 0.0, self.std)
            if self.bias is not None:
                nn.init.zeros_(self.bias)


_PLAIN = {nn.Parameter, FakeTensor, type(None)}
"""Weights, and what stands in for them while costs are measured."""


def mapped(project: nn.Module, x: Cheap) -> Tensor:
    """A linear map of what is cheap to make anew; as a plain call where the map is changed, sharded or listened to."""
    own: dict[str, Any] = project._parameters
    listened = project._forward_hooks or project._forward_pre_hooks or project._backward_hooks
    if type(project) is not Linear or listened or not {type(w) for w in own.values()} <= _PLAIN:
        y: Tensor = project(x.value)
        return y
    return x.linear(own["weight"], own["bias"])
