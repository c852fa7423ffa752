"""A small model of every wrapper, and a call of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import variform.dialects.x_transformers as ours
from variform.dialects.x_transformers.continuous_autoencoder import ContinuousTransformerAutoencoder
from variform.dialects.x_transformers.discover_wrapper import DiscoverDecoder
from variform.dialects.x_transformers.free_transformer import FreeTransformer
from variform.dialects.x_transformers.full_bandwidth import FullBandwidth
from variform.dialects.x_transformers.gpt_lejepa import LatentAutoregressive
from variform.dialects.x_transformers.gpt_vae import GPTVAE
from variform.dialects.x_transformers.recirculation import Recirculation
from variform.dialects.x_transformers.xm_latent_decoder import XMLatentDecoder

HEADS: dict[str, Any] = {"heads": 2, "attn_dim_head": 8}
SIZE: dict[str, Any] = {"dim": 16, "depth": 2, **HEADS}
VOCABULARY, LENGTH = 11, 7


@dataclass(frozen=True)
class Case:
    """A wrapper and a call.

    Args:
        make: builds it.
        args: of the call.
        keywords: of the call.
        quick: whether it is compiled in the default suite.
        whole: whether a call is one graph.
    """

    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    quick: bool = True
    whole: bool = True


def net(stack: Any = ours.Decoder, layers: dict[str, Any] | None = None, **keywords: Any) -> ours.TransformerWrapper:
    """A language model."""
    given = {"num_tokens": VOCABULARY, "max_seq_len": 12, "max_mem_len": 3, **keywords}
    return ours.TransformerWrapper(attn_layers=stack(**SIZE, **(layers or {})), **given)


def continuous(**keywords: Any) -> ours.ContinuousTransformerWrapper:
    """A model of features."""
    given = {"max_seq_len": 12, "dim_in": 5, "dim_out": 5, "max_mem_len": 3, **keywords}
    return ours.ContinuousTransformerWrapper(attn_layers=ours.Decoder(**SIZE), **given)


def filling(**keywords: Any) -> ours.NonAutoregressiveWrapper:
    """A model that fills in tokens."""
    inner = net(ours.Encoder, num_tokens=VOCABULARY + 1, max_seq_len=LENGTH, max_mem_len=0)
    return ours.NonAutoregressiveWrapper(inner, mask_id=VOCABULARY, **keywords)


def translating() -> ours.XTransformer:
    """An encoder and a decoder."""
    sides = {"num_tokens": VOCABULARY, "max_seq_len": 12, "depth": 1, **HEADS}
    given = {prefix + name: value for prefix in ("enc_", "dec_") for name, value in sides.items()}
    return ours.XTransformer(dim=16, **given)


def xval() -> ours.XValAutoregressiveWrapper:
    """A model of numbers among tokens."""
    keywords: dict[str, Any] = {"num_tokens": VOCABULARY, "max_seq_len": 12, "numerical_token_id": 3}
    return ours.XValAutoregressiveWrapper(
        ours.XValTransformerWrapper(attn_layers=ours.Decoder(**SIZE), **keywords), pad_value=0
    )


def several_inputs() -> ours.MultiInputTransformerWrapper:
    """A model of two sequences of tokens."""
    sizes = {"a": VOCABULARY, "b": VOCABULARY}
    return ours.MultiInputTransformerWrapper(num_tokens=sizes, max_seq_len=12, attn_layers=ours.Decoder(**SIZE))


def drawn(seed: int, *shape: int) -> Tensor:
    """Token ids."""
    return torch.randint(1, VOCABULARY, shape or (2, LENGTH), generator=torch.Generator().manual_seed(seed))


IDS, OTHER = drawn(1), drawn(2)
X = torch.randn(2, LENGTH, 5, generator=torch.Generator().manual_seed(3))
REAL = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 2]])
MEMS = [torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(4 + n)) for n in range(2)]
TEXT: dict[str, Any] = {"num_tokens": VOCABULARY, "dim": 16, "max_seq_len": 12, **HEADS}

CALLS: dict[str, Case] = {
    "intermediates": Case(net, (IDS,), {"return_intermediates": True, "mask": REAL}),
    "attention maps": Case(net, (IDS,), {"return_attn": True}),
    "z-loss": Case(net, (IDS,), {"return_attn_z_loss": True, "mask": REAL}),
    "entropies": Case(net, (IDS,), {"return_logit_entropies": True}, quick=False),
    "memories": Case(net, (IDS,), {"mems": MEMS, "return_mems": True}, quick=False),
    "memories and intermediates": Case(net, (IDS,), {"mems": MEMS, "return_mems": True, "return_intermediates": True}),
    "hiddens of layers": Case(
        lambda: ours.Encoder(**SIZE), (torch.randn(2, 5, 16),), {"return_hiddens": True}, quick=False
    ),
    "memory tokens": Case(
        lambda: net(num_memory_tokens=2, emb_dim=8), (IDS,), {"return_intermediates": True}, quick=False
    ),
    "loops": Case(
        lambda: net(looped=True, layers={"pre_and_post_norm": True}), (IDS,), {"return_intermediates": True}, False
    ),
    "recycling": Case(lambda: net(recycling=True), (IDS,), {"return_intermediates": True}, quick=False),
    "several streams": Case(
        lambda: net(layers={"num_residual_streams": 2}), (IDS,), {"return_intermediates": True}, quick=False
    ),
    "hidden keys": Case(net, (IDS,), {"self_attn_kv_mask": REAL}),
    "features": Case(continuous, (X,), {"return_intermediates": True}),
    "features' memories": Case(continuous, (X,), {"mems": MEMS, "return_mems": True}, quick=False),
    "features' attention maps": Case(continuous, (X,), {"return_attn": True}, quick=False),
    "several inputs": Case(several_inputs, ({"a": IDS, "b": OTHER},), {"return_intermediates": True}, quick=False),
}
"""Calls of models that tell more than an answer, and some that hide keys."""

WRAPPERS: dict[str, Case] = {
    "autoregressive": Case(lambda: ours.AutoregressiveWrapper(net(), mask_prob=0.3), (IDS,)),
    "autoregressive with a z-loss": Case(
        lambda: ours.AutoregressiveWrapper(net(attn_z_loss_weight=0.1), add_attn_z_loss=True), (IDS,), quick=False
    ),
    "autoregressive over loops": Case(
        lambda: ours.AutoregressiveWrapper(net(looped=True, layers={"pre_and_post_norm": True})), (IDS,), quick=False
    ),
    "next features": Case(lambda: ours.AutoregressiveWrapper(net(add_continuous_pred_head=True)), (IDS,), quick=False),
    "segments": Case(lambda: ours.XLAutoregressiveWrapper(net(max_seq_len=4, layers={"rotary_pos_emb": True})), (IDS,)),
    "filling in": Case(
        lambda: filling(self_token_critic=True, no_replace_prob=0.2, random_token_prob=0.2), (IDS,), {"mask": REAL}
    ),
    "filling in, weighted": Case(lambda: filling(schedule="linear"), (IDS,), quick=False),
    "translating": Case(translating, (IDS, OTHER), {"mask": REAL}),
    "features": Case(lambda: ours.ContinuousAutoregressiveWrapper(continuous()), (X,), quick=False),
    "likely features": Case(
        lambda: ours.ContinuousAutoregressiveWrapper(continuous(probabilistic=True)), (X,), quick=False
    ),
    "autoencoder": Case(
        lambda: ContinuousTransformerAutoencoder(
            dim=16, dim_input=5, enc_depth=1, dec_depth=1, max_seq_len=12, **HEADS
        ),
        (X,),
    ),
    "vae": Case(lambda: GPTVAE(depth=1, enc_depth=1, **TEXT), (IDS,)),
    "latents": Case(lambda: XMLatentDecoder(net(), num_latents=2, latent_dim=5), (IDS,), {"active_latent_index": 1}),
    "drawn latents": Case(
        lambda: XMLatentDecoder(net(), num_latents=2, latent_dim=5), (IDS,), quick=False, whole=False
    ),
    "belief": Case(lambda: ours.BeliefStateWrapper(net(), net()), (IDS,), quick=False),
    "next latent": Case(lambda: ours.NextLatentWrapper(net(), dim=16, num_rollouts=2), (IDS,)),
    "numbers": Case(xval, (IDS, X[..., 0]), quick=False),
    "preferences": Case(
        lambda: ours.DPO(net()),
        (IDS, OTHER),
        {"prompt_mask": torch.arange(LENGTH) < torch.tensor([[2], [3]])},
        quick=False,
    ),
    "points": Case(
        lambda: ours.NeoMLP(dim_in=5, dim_hidden=6, dim_out=3, dim_model=16, depth=1, encoder_kwargs=HEADS),
        (X[:, 0],),
        quick=False,
    ),
    "free": Case(lambda: FreeTransformer(dec_head_depth=1, dec_tail_depth=1, latent_bits=3, **TEXT), (IDS,)),
    "full bandwidth": Case(
        lambda: FullBandwidth(
            net(tie_embedding=True, post_emb_norm=True, layers={"depth_scale_residual": True}, max_mem_len=0)
        ),
        (IDS,),
        quick=False,
    ),
    "recirculation": Case(lambda: Recirculation(net(), 1, 0), (IDS,), quick=False, whole=False),
    "latent prediction": Case(
        lambda: LatentAutoregressive(net(), dim=16, num_rollouts=2, sigreg_loss_kwargs={"num_slices": 8}),
        (IDS,),
        quick=False,
    ),
    "roles": Case(
        lambda: DiscoverDecoder(decoder=net(), num_fillers=6, bos_id=9, pad_id=10, max_seq_len=8),
        (drawn(5, 2, 5) % 6,),
        {"targets": drawn(6, 2, 5) % 6},
        quick=False,
    ),
    "entropies": Case(lambda: ours.EntropyBasedTokenizer(net(), entropy_threshold=1.7), (IDS,), quick=False),
}
"""Wrappers. What is not one graph has a step whose shape or course is drawn, or goes token by token from a state."""
