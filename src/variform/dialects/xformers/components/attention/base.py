"""What every attention of the dialect is: upstream's base class and the flags that `MultiHeadDispatch` goes by."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn


@dataclass
class AttentionConfig:
    """What the configuration of every attention has.

    Args:
        name: the registered name.
        dropout: probability of dropping an attention weight.
    """

    name: str
    dropout: float


class Attention(nn.Module, metaclass=ABCMeta):
    """An attention mechanism, called by `MultiHeadDispatch` with projected queries, keys and values.

    A subclass sets the flags in its constructor, after `super().__init__()`:

    - requires_input_projection: queries, keys and values are projected first.
    - requires_head_dimension: it takes [B, heads, S, D]; otherwise [B * heads, S, D].
    - requires_separate_masks: attention mask and key padding come as separate arguments.
    - requires_same_k_q_dimensions: keys and queries have equal lengths.
    - requires_skip_multi_head: it takes [B, S, dim_model] and owns its heads.
    - requires_squared_context: the length is a square number.
    - supports_attention_mask, supports_key_padding_mask: which masks its `forward` honours.
    """

    dropped: tuple[str, ...] = ()
    """Keys of its configuration that it had no use for."""

    @abstractmethod
    def __init__(self, dropout: float | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.requires_input_projection = True
        self.requires_head_dimension = False
        self.requires_separate_masks = False
        self.requires_same_k_q_dimensions = False
        self.requires_skip_multi_head = False
        self.requires_squared_context = False
        self.supports_attention_mask = True
        self.supports_key_padding_mask = False

    @classmethod
    def from_config(cls, config: AttentionConfig) -> Any:
        """Build from a configuration dataclass; fields that are None keep the constructor's defaults."""
        given = {f.name: getattr(config, f.name) for f in fields(config)}
        return cls(**{key: value for key, value in given.items() if value is not None})

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attend."""
