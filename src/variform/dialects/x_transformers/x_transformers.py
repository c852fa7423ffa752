"""The names of upstream's module `x_transformers.x_transformers`."""

from variform.dialects.x_transformers.attention_layers import (
    AttentionLayers,
    CrossAttender,
    Decoder,
    Encoder,
    PrefixDecoder,
    TransformerBlock,
)
from variform.dialects.x_transformers.attention_module import Attention
from variform.dialects.x_transformers.attention_pool import AttentionPool
from variform.dialects.x_transformers.autoregressive_wrapper import AutoregressiveWrapper
from variform.dialects.x_transformers.device import default_device
from variform.dialects.x_transformers.feedforward_module import FeedForward, layer_schedule
from variform.dialects.x_transformers.intermediates import LayerIntermediates
from variform.dialects.x_transformers.norms_module import AdaptiveRMSNorm, RMSNorm
from variform.dialects.x_transformers.seq2seq import XTransformer
from variform.dialects.x_transformers.vision import ViTransformerWrapper
from variform.dialects.x_transformers.wrapper import TransformerWrapper

__all__ = [
    "AdaptiveRMSNorm",
    "Attention",
    "AttentionLayers",
    "AttentionPool",
    "AutoregressiveWrapper",
    "CrossAttender",
    "Decoder",
    "Encoder",
    "FeedForward",
    "LayerIntermediates",
    "PrefixDecoder",
    "RMSNorm",
    "TransformerBlock",
    "TransformerWrapper",
    "ViTransformerWrapper",
    "XTransformer",
    "default_device",
    "layer_schedule",
]
