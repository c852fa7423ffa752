"""The parts of the dialect and how they are built from configurations."""

from variform.dialects.xformers.components.attention import Attention, build_attention
from variform.dialects.xformers.components.input_projection import InputProjection, InputProjectionConfig
from variform.dialects.xformers.components.multi_head_config import build_multi_head_attention
from variform.dialects.xformers.components.multi_head_dispatch import MultiHeadDispatch, MultiHeadDispatchConfig

__all__ = [
    "Attention",
    "InputProjection",
    "InputProjectionConfig",
    "MultiHeadDispatch",
    "MultiHeadDispatchConfig",
    "build_attention",
    "build_multi_head_attention",
]
