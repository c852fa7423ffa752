"""Feedforwards: a registry of them, and `build_feedforward`."""

from variform.dialects.xformers.components.feedforward.base import Feedforward, FeedforwardConfig
from variform.dialects.xformers.components.feedforward.conv_mlp import Conv2DFeedforward
from variform.dialects.xformers.components.feedforward.fused_mlp import FusedMLP, FusedMlpConfig
from variform.dialects.xformers.components.feedforward.glu import GEGLU, Bilinear, ReGLU, SiGLU, SwiGLU
from variform.dialects.xformers.components.feedforward.mixture_of_experts import GateConfig, MixtureOfExperts, MoEConfig
from variform.dialects.xformers.components.feedforward.mlp import MLP, MlpConfig
from variform.dialects.xformers.components.feedforward.registry import (
    FEEDFORWARD_REGISTRY,
    build_feedforward,
    register_feedforward,
)

__all__ = [
    "FEEDFORWARD_REGISTRY",
    "GEGLU",
    "MLP",
    "Bilinear",
    "Conv2DFeedforward",
    "Feedforward",
    "FeedforwardConfig",
    "FusedMLP",
    "FusedMlpConfig",
    "GateConfig",
    "MixtureOfExperts",
    "MlpConfig",
    "MoEConfig",
    "ReGLU",
    "SiGLU",
    "SwiGLU",
    "build_feedforward",
    "register_feedforward",
]
