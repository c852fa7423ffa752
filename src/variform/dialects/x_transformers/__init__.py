"""x-transformers' surface over the core: classes with keywords, each of which is a spec.

    from variform.dialects.x_transformers import Decoder, TransformerWrapper

    model = TransformerWrapper(num_tokens=256, max_seq_len=1024, attn_layers=Decoder(dim=512, depth=6, heads=8))

Keywords are routed to native specs (`model.spec`); what is known and not supported is refused, never ignored.
"""

from variform.dialects.x_transformers.attention_module import Attention
from variform.dialects.x_transformers.autoregressive_wrapper import AutoregressiveWrapper
from variform.dialects.x_transformers.belief_state_wrapper import BeliefStateWrapper
from variform.dialects.x_transformers.continuous import (
    ContinuousAutoregressiveWrapper,
    ContinuousTransformerWrapper,
)
from variform.dialects.x_transformers.dpo import DPO
from variform.dialects.x_transformers.entropy_based_tokenizer import EntropyBasedTokenizer
from variform.dialects.x_transformers.multi_input import MultiInputTransformerWrapper
from variform.dialects.x_transformers.neo_mlp import NeoMLP
from variform.dialects.x_transformers.next_latent_wrapper import NextLatentWrapper
from variform.dialects.x_transformers.nonautoregressive_wrapper import NonAutoregressiveWrapper
from variform.dialects.x_transformers.norms_module import AdaptiveRMSNorm, RMSNorm
from variform.dialects.x_transformers.x_transformers import (
    AttentionLayers,
    AttentionPool,
    CrossAttender,
    Decoder,
    Encoder,
    FeedForward,
    PrefixDecoder,
    TransformerBlock,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    default_device,
    layer_schedule,
)
from variform.dialects.x_transformers.xl_autoregressive_wrapper import XLAutoregressiveWrapper
from variform.dialects.x_transformers.xval import XValAutoregressiveWrapper, XValTransformerWrapper

__all__ = [
    "DPO",
    "AdaptiveRMSNorm",
    "Attention",
    "AttentionLayers",
    "AttentionPool",
    "AutoregressiveWrapper",
    "BeliefStateWrapper",
    "ContinuousAutoregressiveWrapper",
    "ContinuousTransformerWrapper",
    "CrossAttender",
    "Decoder",
    "Encoder",
    "EntropyBasedTokenizer",
    "FeedForward",
    "MultiInputTransformerWrapper",
    "NeoMLP",
    "NextLatentWrapper",
    "NonAutoregressiveWrapper",
    "PrefixDecoder",
    "RMSNorm",
    "TransformerBlock",
    "TransformerWrapper",
    "ViTransformerWrapper",
    "XLAutoregressiveWrapper",
    "XTransformer",
    "XValAutoregressiveWrapper",
    "XValTransformerWrapper",
    "default_device",
    "layer_schedule",
]
