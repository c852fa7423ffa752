"""Position embeddings: a registry of them, and `build_positional_embedding`."""

from variform.dialects.xformers.components.positional_embedding.base import PositionEmbedding, PositionEmbeddingConfig
from variform.dialects.xformers.components.positional_embedding.param import LearnablePositionalEmbedding
from variform.dialects.xformers.components.positional_embedding.registry import (
    POSITION_EMBEDDING_REGISTRY,
    build_positional_embedding,
    register_positional_embedding,
)
from variform.dialects.xformers.components.positional_embedding.rotary import RotaryEmbedding
from variform.dialects.xformers.components.positional_embedding.sine import SinePositionalEmbedding
from variform.dialects.xformers.components.positional_embedding.vocab import VocabEmbedding

__all__ = [
    "POSITION_EMBEDDING_REGISTRY",
    "LearnablePositionalEmbedding",
    "PositionEmbedding",
    "PositionEmbeddingConfig",
    "RotaryEmbedding",
    "SinePositionalEmbedding",
    "VocabEmbedding",
    "build_positional_embedding",
    "register_positional_embedding",
]
