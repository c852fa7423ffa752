"""What every position embedding of the dialect is."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from variform.core.spec import Spec


@dataclass
class PositionEmbeddingConfig:
    """What the configuration of every position embedding has.

    Args:
        name: the registered name.
        dim_model: features out.
        seq_len: the longest sequence.
    """

    name: str
    dim_model: int
    seq_len: int


class PositionEmbedding(nn.Module, metaclass=ABCMeta):
    """Turns a model's inputs into features with positions: `forward(x) -> [B, S, dim_model]`."""

    dropped: tuple[str, ...] = ()
    """Keys of its configuration that it had no use for."""

    @abstractmethod
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, config: PositionEmbeddingConfig) -> Any:
        """Build from a configuration dataclass; fields that are None keep the constructor's defaults."""
        given = {f.name: getattr(config, f.name) for f in fields(config)}
        return cls(**{key: value for key, value in given.items() if value is not None})


class PlacedEmbedding(PositionEmbedding):
    """A position embedding of the library: positions may be given, tokens may be put in front."""

    class_tokens = 0

    @abstractmethod
    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embed.

        Args:
            x: the inputs.
            positions: [S] or [B, S] integers of the inputs; 0, 1, ... by default.
        """

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """The native embedding that computes the same."""

    @property
    @abstractmethod
    def longest(self) -> int | None:
        """The longest input, where there is one."""
