"""Blocks and whole models built from configurations."""

from variform.dialects.xformers.components import MultiHeadDispatchConfig
from variform.dialects.xformers.components.attention import AttentionConfig
from variform.dialects.xformers.components.feedforward import FeedforwardConfig
from variform.dialects.xformers.components.positional_embedding import PositionEmbeddingConfig
from variform.dialects.xformers.factory.block_configs import (
    xFormerBlockConfig,
    xFormerDecoderConfig,
    xFormerEncoderConfig,
)
from variform.dialects.xformers.factory.block_factory import xFormerDecoderBlock, xFormerEncoderBlock
from variform.dialects.xformers.factory.model_factory import xFormer, xFormerConfig, xFormerStackConfig
from variform.dialects.xformers.factory.torch_transformer import TorchDecoder, TorchEncoder
from variform.dialects.xformers.factory.weight_init import xFormerWeightInit

__all__ = [
    "AttentionConfig",
    "FeedforwardConfig",
    "MultiHeadDispatchConfig",
    "PositionEmbeddingConfig",
    "TorchDecoder",
    "TorchEncoder",
    "xFormer",
    "xFormerBlockConfig",
    "xFormerConfig",
    "xFormerDecoderBlock",
    "xFormerDecoderConfig",
    "xFormerEncoderBlock",
    "xFormerEncoderConfig",
    "xFormerStackConfig",
    "xFormerWeightInit",
]
