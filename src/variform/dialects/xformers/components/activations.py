"""The activations by upstream's names, as modules."""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor, nn

from variform.dialects.xformers.building import checked
from variform.dialects.xformers.errors import config_error
from variform.parts.activation import ACTIVATIONS
from variform.parts.activation import Activation as NativeName


class Activation(StrEnum):
    """Names of activations."""

    SquaredReLU = "squared_relu"
    GeLU = "gelu"
    LeakyReLU = "leaky_relu"
    ReLU = "relu"
    SmeLU = "smelu"
    StarReLU = "star_relu"


class _Function(nn.Module):
    name: NativeName

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return ACTIVATIONS[self.name](x)


class SquaredReLU(_Function):
    """relu(x)^2 (Primer, arXiv:2109.08668)."""

    name = "relu_squared"


class StarReLU(_Function):
    """0.8944 relu(x)^2 - 0.4472 (arXiv:2210.13452)."""

    name = "star_relu"


class SmeLU(_Function):
    """Smooth ReLU with beta = 2 (arXiv:2202.06499)."""

    name = "smelu"


_MODULES: dict[Activation, type[nn.Module]] = {
    Activation.SquaredReLU: SquaredReLU,
    Activation.GeLU: nn.GELU,
    Activation.LeakyReLU: nn.LeakyReLU,
    Activation.ReLU: nn.ReLU,
    Activation.SmeLU: SmeLU,
    Activation.StarReLU: StarReLU,
}

_NATIVE: dict[type[nn.Module], NativeName] = {
    nn.GELU: "gelu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU: "relu",
    nn.Identity: "none",
    SquaredReLU: "relu_squared",
    StarReLU: "star_relu",
    SmeLU: "smelu",
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
    return _NATIVE.get(type(module))
