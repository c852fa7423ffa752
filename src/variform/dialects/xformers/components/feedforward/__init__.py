"""Feedforwards: a registry of them, and `build_feedforward`."""

from variform.dialects.xformers.components.feedforward.base import Feedforward, FeedforwardConfig
from variform.dialects.xformers.components.feedforward.conv_mlp import Conv2DFeedforward
from variform.dialects.xformers.components.feedforward.mlp import MLP, FusedMLP
from variform.dialects.xformers.components.feedforward.registry import (
    FEEDFORWARD_REGISTRY,
    build_feedforward,
    register_feedforward,
)

__all__ = [
    "FEEDFORWARD_REGISTRY",
    "MLP",
    "Conv2DFeedforward",
    "Feedforward",
    "FeedforwardConfig",
    "FusedMLP",
    "build_feedforward",
    "register_feedforward",
]
