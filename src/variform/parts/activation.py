"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal[
    "gelu",
    "gelu_tanh",
    "relu",
    "relu_squared",
    "silu",
    "sigmoid",
    "tanh",
    "leaky_relu",
    "smelu",
    "star_relu",
    "none",
]


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def smelu(x: Tensor, beta: float = 2.0) -> Tensor:
    """Smooth ReLU (arXiv:2202.06499): 0 below -beta, x above beta, (x + beta)^2 / (4 beta) between."""
    return torch.where(x.abs() <= beta, (x + beta).square() / (4 * beta), F.relu(x))


def star_relu(x: Tensor) -> Tensor:
    """StarReLU (arXiv:2210.13452): 0.8944 relu(x)^2 - 0.4472, of mean 0 and variance 1 for a standard normal x."""
    return 0.8944 * F.relu(x).square() - 0.4472


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu_squared": _relu_squared,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "smelu": smelu,
    "star_relu": star_relu,
    "none": _identity,
}
"""By name; gelu is the exact one, relu_squared is arXiv:2109.08668, none the identity."""
