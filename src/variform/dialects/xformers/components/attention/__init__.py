"""Attention mechanisms: a registry of them, and `build_attention`."""

from torch import Tensor

from variform.dialects.xformers.components.attention._sputnik_sparse import SparseCS
from variform.dialects.xformers.components.attention.attention_mask import AttentionMask
from variform.dialects.xformers.components.attention.base import Attention, AttentionConfig
from variform.dialects.xformers.components.attention.blocksparse import BlockSparseAttention
from variform.dialects.xformers.components.attention.compositional import CompositionalAttention
from variform.dialects.xformers.components.attention.favor import FavorAttention
from variform.dialects.xformers.components.attention.fourier_mix import FourierMix
from variform.dialects.xformers.components.attention.global_tokens import GlobalAttention
from variform.dialects.xformers.components.attention.lambda_layer import LambdaLayer
from variform.dialects.xformers.components.attention.linformer import LinformerAttention
from variform.dialects.xformers.components.attention.local import LocalAttention
from variform.dialects.xformers.components.attention.nystrom import NystromAttention
from variform.dialects.xformers.components.attention.ortho import OrthoFormerAttention
from variform.dialects.xformers.components.attention.pooling import Pooling
from variform.dialects.xformers.components.attention.random import RandomAttention
from variform.dialects.xformers.components.attention.registry import (
    ATTENTION_REGISTRY,
    build_attention,
    register_attention,
)
from variform.dialects.xformers.components.attention.scaled_dot_product import ScaledDotProduct
from variform.dialects.xformers.components.attention.visual import Visual

__all__ = [
    "ATTENTION_REGISTRY",
    "Attention",
    "AttentionConfig",
    "AttentionMask",
    "BlockSparseAttention",
    "CompositionalAttention",
    "FavorAttention",
    "FourierMix",
    "GlobalAttention",
    "LambdaLayer",
    "LinformerAttention",
    "LocalAttention",
    "NystromAttention",
    "OrthoFormerAttention",
    "Pooling",
    "RandomAttention",
    "ScaledDotProduct",
    "SparseCS",
    "Visual",
    "build_attention",
    "maybe_sparsify",
    "register_attention",
    "sparsify",
]

_DENSITY_THRESHOLD = 0.30
"""The share of places up to which `maybe_sparsify` makes a sparse mask; settable."""


def sparsify(matrix: Tensor) -> SparseCS:
    """A pattern as a sparse mask, whatever its density."""
    return SparseCS(matrix)


def maybe_sparsify(matrix: Tensor) -> SparseCS | AttentionMask:
    """A bool pattern as a sparse mask where at most `_DENSITY_THRESHOLD` of it is True, else as an additive mask.

    Either serves wherever a mask is taken; which backend computes it is decided by measured times, not by this.
    """
    density = int(matrix.count_nonzero()) / max(1, matrix.numel())
    return AttentionMask.from_bool(matrix) if density > _DENSITY_THRESHOLD else sparsify(matrix)
