"""Attention mechanisms: a registry of them, and `build_attention`."""

from variform.dialects.xformers.components.attention.attention_mask import AttentionMask
from variform.dialects.xformers.components.attention.base import Attention, AttentionConfig
from variform.dialects.xformers.components.attention.local import LocalAttention
from variform.dialects.xformers.components.attention.registry import (
    ATTENTION_REGISTRY,
    build_attention,
    register_attention,
)
from variform.dialects.xformers.components.attention.scaled_dot_product import ScaledDotProduct

__all__ = [
    "ATTENTION_REGISTRY",
    "Attention",
    "AttentionConfig",
    "AttentionMask",
    "LocalAttention",
    "ScaledDotProduct",
    "build_attention",
    "register_attention",
]
