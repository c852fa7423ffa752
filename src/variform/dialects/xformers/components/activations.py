"""The activations by upstream's names, as modules."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from variform.dialects.xformers.building import checked
from variform.dialects.xformers.errors import config_error
from variform.parts.activation import ACTIVATIONS, smelu, star_relu
from variform.parts.activation import Activation as NativeName


class Activation(StrEnum):
    """Names of activations."""

    SquaredReLU = "squared_relu"
    GeLU = "gelu"
    LeakyReLU = "leaky_relu"
    ReLU = "relu"
    SmeLU = "smelu"
    StarReLU = "star_relu"
    SiLU = "silu"
    Tanh = "tanh"
    Sigmoid = "sigmoid"


class SquaredReLU(nn.Module):
    """relu(x)^2 (Primer, arXiv:2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return ACTIVATIONS["relu_squared"](x)


class StarReLU(nn.Module):
    """0.8944 relu(x)^2 - 0.4472 (arXiv:2210.13452)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return star_relu(x)


class SmeLU(nn.Module):
    """Smooth ReLU (arXiv:2202.06499): 0 below -beta, x above beta, (x + beta)^2 / (4 beta) between.

    Args:
        beta: half the width of the bend.
    """

    def __init__(self, beta: float = 2.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return smelu(x, self.beta)

    def extra_repr(self) -> str:
        """beta."""
        return f"beta={self.beta}"


_MODULES: dict[Activation, type[nn.Module]] = {
    Activation.SquaredReLU: SquaredReLU,
    Activation.GeLU: nn.GELU,
    Activation.LeakyReLU: nn.LeakyReLU,
    Activation.ReLU: nn.ReLU,
    Activation.SmeLU: SmeLU,
    Activation.StarReLU: StarReLU,
    Activation.SiLU: nn.SiLU,
    Activation.Tanh: nn.Tanh,
    Activation.Sigmoid: nn.Sigmoid,
}

_NATIVE: dict[type[nn.Module], NativeName] = {
    nn.GELU: "gelu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU: "relu",
    nn.Identity: "none",
    SquaredReLU: "relu_squared",
    StarReLU: "star_relu",
    SmeLU: "smelu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


def build_activation(activation: Activation | str | None) -> nn.Module:
    """The module of an activation; None is the identity.

    Raises:
        ConfigError: an unknown name; a `KeyError` too.
    """
    if not activation:
        return nn.Identity()
    value, wrong = checked("activation", Activation, activation)
    if wrong is not None:
        raise config_error([wrong])
    return _MODULES[value]()


def native_name(module: nn.Module) -> NativeName | None:
    """The library's own name of an activation module, or None where it has none."""
    if isinstance(module, SmeLU) and module.beta != 2:
        return None
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return "gelu_tanh"
    if isinstance(module, nn.LeakyReLU) and module.negative_slope != 0.01:
        return None
    return _NATIVE.get(type(module))


def as_native(name: Any) -> Any:
    """An activation by the library's own name; what is no activation of the dialect stays as it is."""
    if name not in set(Activation):
        return name
    return _NATIVE[_MODULES[Activation(name)]]
