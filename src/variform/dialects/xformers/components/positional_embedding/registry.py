"""Which position embeddings there are, and how one is built from a dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.dialects.xformers.building import build_part
from variform.dialects.xformers.components.positional_embedding.adopted import adopt_embedding
from variform.dialects.xformers.components.positional_embedding.base import PositionEmbedding, PositionEmbeddingConfig
from variform.dialects.xformers.utils import Registry, get_registry_decorator

POSITION_EMBEDDING_REGISTRY = Registry("position embedding", ("dim_model", "seq_len"))

register_positional_embedding = get_registry_decorator(
    POSITION_EMBEDDING_REGISTRY, PositionEmbedding, PositionEmbeddingConfig, adopt_embedding
)
"""Register a `PositionEmbedding` subclass under a name, with the dataclass that describes its configuration."""


def build_positional_embedding(config: Mapping[str, Any] | PositionEmbeddingConfig, **offers: Any) -> Any:
    """Build the position embedding that a configuration names; supersets are treated as in `build_attention`.

    Args:
        config: a mapping with the key `name`, or a configuration dataclass. Not changed.
        **offers: values of the surroundings (`dim_model`), used where the configuration is silent.

    Raises:
        ConfigError: all problems at once; also a `KeyError` for an unknown name, a `TypeError` for a missing key.
    """
    return build_part(POSITION_EMBEDDING_REGISTRY, config, offers)
