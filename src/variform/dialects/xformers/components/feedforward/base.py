"""What every feedforward of the dialect is."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from variform.dialects.xformers.components.activations import Activation


@dataclass
class FeedforwardConfig:
    """What the configuration of every feedforward has.

    Args:
        name: the registered name.
        dim_model: features in and out.
        dropout: probability of zeroing a feature.
        activation: the function between the maps.
    """

    name: str
    dim_model: int
    dropout: float
    activation: Activation


class Feedforward(nn.Module, metaclass=ABCMeta):
    """Transforms each token: `forward(inputs) -> outputs`, both [B, S, dim_model].

    A subclass sets the flags in its constructor, after `super().__init__()`:

    - requires_cuda: it runs on a GPU alone.
    - requires_squared_context: the length is a square number.
    """

    dropped: tuple[str, ...] = ()
    """Keys of its configuration that it had no use for."""
    takes_padding = False
    """Whether its forward takes `padding`, [B, S] bool, False at padding."""
    causal = True
    """Whether what becomes of a token depends on no later one."""

    @abstractmethod
    def __init__(
        self,
        dim_model: int | None = None,
        dropout: float | None = None,
        activation: Activation | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.requires_cuda = False
        self.requires_squared_context = False

    @classmethod
    def from_config(cls, config: FeedforwardConfig) -> Any:
        """Build from a configuration dataclass; fields that are None keep the constructor's defaults."""
        given = {f.name: getattr(config, f.name) for f in fields(config)}
        return cls(**{key: value for key, value in given.items() if value is not None})
