"""The parts of the dialect and how they are built from configurations."""

from variform.dialects.xformers.components.activations import Activation, build_activation
from variform.dialects.xformers.components.attention import Attention, AttentionConfig, build_attention
from variform.dialects.xformers.components.input_projection import InputProjection, InputProjectionConfig
from variform.dialects.xformers.components.multi_head_config import build_multi_head_attention
from variform.dialects.xformers.components.multi_head_dispatch import MultiHeadDispatch, MultiHeadDispatchConfig
from variform.dialects.xformers.components.patch_embedding import PatchEmbeddingConfig, build_patch_embedding
from variform.dialects.xformers.components.residual import (
    NormalizationType,
    PostNorm,
    PreNorm,
    RequiresWrappedInputs,
    Residual,
    ResidualNormStyle,
)

__all__ = [
    "Activation",
    "Attention",
    "AttentionConfig",
    "InputProjection",
    "InputProjectionConfig",
    "MultiHeadDispatch",
    "MultiHeadDispatchConfig",
    "NormalizationType",
    "PatchEmbeddingConfig",
    "PostNorm",
    "PreNorm",
    "RequiresWrappedInputs",
    "Residual",
    "ResidualNormStyle",
    "build_activation",
    "build_attention",
    "build_multi_head_attention",
    "build_patch_embedding",
]
