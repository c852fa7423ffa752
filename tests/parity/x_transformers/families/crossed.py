"""Features of different families that have to know of one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.x_transformers.option_set import LAYERS, OptionSet

REMEMBERS: dict[str, Any] = {"max_mem_len": 8}
COPE: dict[str, Any] = {"attn_use_cope": True, "attn_cope_max_pos": 5}
GATED: dict[str, Any] = {
    "gated_multi_residual": True,
    "num_residual_streams": 2,
    "residual_fn_kwargs": {"read_gate_rank": 5},
}


def prefix(ids: Tensor) -> dict[str, Any]:
    """The first tokens of each row are seen both ways."""
    return {"prefix_attn_len": torch.tensor([3, 6, 5][: len(ids)])}


def remembers(ids: Tensor) -> dict[str, Any]:
    """Memories of two self-attentions."""
    draw = torch.Generator().manual_seed(8)
    return {"mems": [torch.randn(len(ids), 5, LAYERS["dim"], generator=draw, dtype=torch.float64) for _ in range(2)]}


def context(ids: Tensor) -> dict[str, Any]:
    """A context as long as the text, so that neither is taken for the other."""
    return {"context": torch.randn(*ids.shape, LAYERS["dim"], generator=torch.Generator().manual_seed(5))}


def longer(ids: Tensor) -> dict[str, Any]:
    """A context of more tokens than the text has."""
    return {"context": torch.randn(len(ids), 17, LAYERS["dim"], generator=torch.Generator().manual_seed(5))}


def positions(ids: Tensor) -> dict[str, Any]:
    """Positions as features, the same for all rows."""
    draw = torch.Generator().manual_seed(6)
    return {"pos": torch.randn(ids.shape[1], LAYERS["dim"], generator=draw, dtype=torch.float64)}


def placed(ids: Tensor) -> dict[str, Any]:
    """A context that stands somewhere."""
    return {**context(ids), "context_pos": torch.arange(ids.shape[1]) + 3}


def further(ids: Tensor) -> dict[str, Any]:
    """Keys and values of another model, for the last layer."""
    draw = torch.Generator().manual_seed(9)
    pair = tuple(torch.randn(len(ids), 4, 3, 8, generator=draw, dtype=torch.float64) for _ in "kv")
    return {"self_attn_additional_kv": [pair]}


BESIDE: dict[str, Any] = {
    "cross_attend": True,
    "cross_attn_hybrid_module": nn.GRU(24, 32, batch_first=True),
    "cross_attn_hybrid_fold_axial_dim": 1,
}
"""A recurrence over the tokens beside what they attend to in a context."""

SETS = [
    OptionSet("context-beside-recurrence", BESIDE, call=longer),
    OptionSet(
        "context-beside-folds",
        {
            **BESIDE,
            "cross_attn_hybrid_fold_axial_dim": 3,
            "cross_attn_hybrid_learned_mix": True,
            "attn_kv_heads": 2,
            "attn_gate_values": True,
        },
        call=context,
    ),
    OptionSet(
        "context-of-latents-beside-recurrence",
        {**BESIDE, "attn_use_latent_kv": True, "attn_dim_latent_kv": 7, "cross_attn_max_attend_past": 4},
        call=context,
    ),
    OptionSet(
        "context-beside-recurrence-both-ways",
        {**BESIDE, "attn_qk_norm": True},
        stack="Encoder",
        call=longer,
    ),
    OptionSet("prefix-top-k", {"attn_sparse_topk": 3}, stack="PrefixDecoder", call=prefix),
    OptionSet(
        "prefix-scores",
        {
            "attn_head_learned_sink": True,
            "attn_softclamp_logits": True,
            "attn_logit_softclamp_value": 1.0,
            "attn_pre_talking_heads": True,
        },
        stack="PrefixDecoder",
        call=prefix,
    ),
    OptionSet("prefix-sigmoid-laser", {"attn_sigmoid": True, "attn_laser": True}, stack="PrefixDecoder", call=prefix),
    OptionSet(
        "prefix-placed",
        {"rotary_pos_emb": True},
        stack="PrefixDecoder",
        call=lambda ids: {**prefix(ids), "pos": torch.arange(ids.shape[1]) * 2 + 3},
    ),
    OptionSet("window-of-a-call-both-ways", {"attn_max_attend_past": 3}, call=lambda ids: {"causal": False}),
    OptionSet("prefix-window", {"attn_max_attend_past": 3}, stack="PrefixDecoder", call=prefix),
    OptionSet(
        "prefix-window-scores",
        {"attn_max_attend_past": 4, "attn_laser": True, "rotary_pos_emb": True, "attn_kv_heads": 2},
        stack="PrefixDecoder",
        call=lambda ids: {"prefix_attn_len": 5},
    ),
    OptionSet("window-of-a-context", {"attn_max_attend_past": 3, "cross_attend": True}, call=context),
    OptionSet(
        "window-of-a-context-that-chooses",
        {"attn_max_attend_past": 4, "cross_attn_inverted_attention": True},
        stack="CrossAttender",
        call=longer,
    ),
    OptionSet(
        "window-of-a-placed-context",
        {
            "attn_max_attend_past": 3,
            "cross_attend": True,
            "cross_attn_max_attend_past": 4,
            "cross_attn_num_mem_kv": 2,
            "rotary_pos_emb": True,
            "attn_gate_values": True,
        },
        stack="Encoder",
        call=lambda ids: {**longer(ids), "context_pos": torch.arange(17) + 3},
    ),
    OptionSet(
        "window-of-a-context-latents",
        {"cross_attn_max_attend_past": 4, "attn_use_latent_kv": True, "attn_dim_latent_kv": 7, "cross_attend": True},
        call=context,
    ),
    OptionSet("cope-qk-norm", {**COPE, "attn_qk_norm": True}),
    OptionSet("cope-qk-norm-dim-scale", {**COPE, "attn_qk_norm": True, "attn_qk_norm_dim_scale": True}),
    OptionSet("cope-qk-norm-groups", {**COPE, "attn_qk_norm": True, "attn_qk_norm_groups": 2, "attn_kv_heads": 2}),
    OptionSet("further-keys-qk-norm", {"attn_qk_norm": True}, call=further),
    OptionSet("further-keys-qk-norm-dim-scale", {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True}, call=further),
    OptionSet("signed-residual-attention", {"attn_cog_signed": True, "residual_attn": True}),
    OptionSet(
        "latents-of-a-placed-context",
        {
            "attn_use_latent_kv": True,
            "attn_dim_latent_kv": 7,
            "attn_latent_rope_subheads": 1,
            "rotary_pos_emb": True,
            "cross_attend": True,
        },
        call=placed,
    ),
    OptionSet("placed-context-alone", {"rotary_pos_emb": True}, stack="CrossAttender", call=placed),
    OptionSet("positions-as-features", call=positions),
    OptionSet(
        "positions-as-features-added",
        {"attn_max_attend_past": 3},
        {"use_abs_pos_emb": False, "post_emb_norm": True, "num_memory_tokens": 2},
        stack="Encoder",
        call=lambda ids: {**positions(ids), "sum_embeds": context(ids)["context"]},
    ),
    OptionSet("odd-rotation", {"rotary_pos_emb": True, "attn_dim_head": 6}),
    OptionSet("odd-rotation-asked-for", {"rotary_pos_emb": True, "rotary_emb_dim": 5}),
    OptionSet(
        "odd-rotation-asked-for-rescaled",
        {"rotary_pos_emb": True, "rotary_emb_dim": 3, "rotary_base_rescale_factor": 2, "attn_kv_heads": 2},
    ),
    OptionSet("odd-rotation-rescaled", {"rotary_pos_emb": True, "attn_dim_head": 10, "rotary_base_rescale_factor": 2}),
    OptionSet("streams-in-another-order", {**GATED, "layers_execute_order": (2, 3, 0, 1)}, versions=("2.31.10",)),
    OptionSet("memories-injected", {"reinject_input": True}, REMEMBERS, call=remembers),
    OptionSet(
        "memories-of-an-adaptive-norm",
        {"use_adaptive_rmsnorm": True, "dim_condition": 6, "adaptive_condition_mlp": True},
        REMEMBERS,
        call=lambda ids: {
            **remembers(ids),
            "condition": torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(2)),
        },
    ),
    OptionSet(
        "memories-and-a-context", {"cross_attend": True}, REMEMBERS, call=lambda ids: {**remembers(ids), **context(ids)}
    ),
    OptionSet("memories-and-skips", {"unet_skips": True}, REMEMBERS, call=remembers),
    OptionSet(
        "memories-and-sums", {}, REMEMBERS, call=lambda ids: {**remembers(ids), "sum_embeds": context(ids)["context"]}
    ),
]
