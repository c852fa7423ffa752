"""What a layer reads beyond the plain residual stream, and which layers run when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.parity.x_transformers.option_set import LAYERS, OptionSet

NEW = ("2.31.10",)
OLD = ("2.26.4",)
POOLED: dict[str, Any] = {"attn_aggregated_residuals": True, "attn_residuals_last_output_as_query": True}
LEARNED: dict[str, Any] = {"attn_aggregated_residuals": True, "attn_residuals_last_output_as_query": False}
RANK: dict[str, Any] = {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rank": 5}}


def features(name: str, length: int | None = 5) -> Callable[[Tensor], dict[str, Any]]:
    """An argument of features, [B, length, dim]; None for one row a token."""

    def call(ids: Tensor) -> dict[str, Any]:
        size = (len(ids), ids.shape[1] if length is None else length, LAYERS["dim"])
        return {name: torch.randn(size, generator=torch.Generator().manual_seed(5))}

    return call


context = features("context")


def condition(ids: Tensor) -> dict[str, Any]:
    """One row of features for all tokens."""
    return {"in_attn_cond": features("in_attn_cond", 1)(ids)["in_attn_cond"][:, 0]}


SETS = [
    OptionSet(
        "integrate-layers",
        {"integrate_layers": True},
        feature="Mixture of earlier layers (dynamic LIMe)",
        part="entry/layer_mixture",
        paper="arXiv:2502.09245",
    ),
    OptionSet(
        "integrate-layers-relu",
        {"integrate_layers": True, "layer_integrate_use_softmax": False},
        feature="Mixture of earlier layers by ReLU",
        part="entry/layer_mixture.weights",
        paper="arXiv:2502.09245",
    ),
    OptionSet(
        "integrate-layers-grouped-rotary", {"integrate_layers": True, "attn_kv_heads": 2, "rotary_pos_emb": True}
    ),
    OptionSet("integrate-layers-cross", {"integrate_layers": True, "cross_attend": True, "depth": 2}, call=context),
    OptionSet("integrate-layers-macaron", {"integrate_layers": True, "macaron": True, "use_rmsnorm": True}),
    OptionSet("integrate-layers-views", {"integrate_layers": True, "qkv_receive_diff_residuals": True}),
    OptionSet("integrate-layers-post-norm", {"integrate_layers": True, "pre_norm": False}),
    OptionSet(
        "integrate-layers-custom", {"integrate_layers": True, "custom_layers": ("a", "f", "f", "a"), "depth": None}
    ),
    OptionSet(
        "aggregated-residuals",
        RANK,
        feature="Attention over earlier layers",
        part="entry/layer_attention",
        paper="arXiv:2603.15031",
        versions=NEW,
    ),
    OptionSet("aggregated-residuals-views", {**RANK, "qkv_receive_diff_residuals": True}, versions=NEW),
    OptionSet("aggregated-residuals-tied", {**RANK, "weight_tie_layers": True}, versions=NEW),
    OptionSet("aggregated-residuals-cross", {**RANK, "cross_attend": True}, call=context, versions=NEW),
    OptionSet(
        "aggregated-residuals-pooled",
        POOLED,
        feature="Multi-head attention over earlier layers",
        part="entry/layer_pooling",
        paper="arXiv:2601.21582",
        versions=OLD,
    ),
    OptionSet("aggregated-residuals-pooled-learned", LEARNED, versions=OLD),
    OptionSet(
        "aggregated-residuals-pooled-views",
        {**POOLED, "qkv_receive_diff_residuals": True, "rotary_pos_emb": True, "depth": 3},
        versions=OLD,
    ),
    OptionSet(
        "unet-skips",
        {"unet_skips": True, "depth": 4},
        feature="U-Net skips",
        part="layer/join_skip",
        paper="arXiv:2209.12152",
    ),
    OptionSet("unet-skips-odd", {"unet_skips": True, "depth": 3, "rotary_pos_emb": True}),
    OptionSet(
        "reinject-input",
        {"reinject_input": True},
        feature="Input injection",
        part="layer/inject_input",
        paper="arXiv:1909.01377",
    ),
    OptionSet(
        "reinject-input-gate",
        {"reinject_input": True, "learned_reinject_input_gate": True},
        feature="Gated input injection",
        part="layer/inject_input.gate",
        paper="arXiv:2410.03020",
    ),
    OptionSet("reinject-input-tied", {"reinject_input": True, "weight_tie_layers": True, "depth": 3}),
    OptionSet("reinject-input-integrate", {"reinject_input": True, "integrate_layers": True}),
    OptionSet(
        "in-attention-condition",
        call=features("in_attn_cond", None),
        feature="In-attention conditioning",
        part="layer/sublayer",
        paper="arXiv:2105.04090",
    ),
    OptionSet("in-attention-condition-of-a-row", call=condition),
    OptionSet(
        "in-attention-condition-gate", {"learned_reinject_input_gate": True}, call=features("in_attn_cond", None)
    ),
    OptionSet(
        "value-residual",
        {"add_value_residual": True, "depth": 3},
        feature="Value residual (ResFormer)",
        part="attention/value_residual",
        paper="arXiv:2410.17897",
    ),
    OptionSet(
        "value-residual-half",
        {"add_value_residual": True, "learned_value_residual_mix": False, "attn_kv_heads": 2},
        feature="Value residual by halves",
        part="attention/value_residual.learned",
        paper="arXiv:2410.17897",
    ),
    OptionSet("value-residual-cross", {"add_value_residual": True, "cross_attend": True}, call=context),
    OptionSet("value-residual-tied", {"add_value_residual": True, "weight_tie_layers": True, "depth": 3}),
    OptionSet(
        "value-residual-norm-rotary",
        {"add_value_residual": True, "attn_value_rmsnorm": True, "rotary_pos_emb": True, "attn_num_mem_kv": 2},
    ),
    OptionSet(
        "value-residual-orthogonal-gated",
        {"add_value_residual": True, "attn_gate_values": True, "attn_head_scale": True, "attn_laser": True},
    ),
    OptionSet("value-residual-integrate", {"add_value_residual": True, "integrate_layers": True}),
    OptionSet(
        "residual-attention",
        {"residual_attn": True},
        feature="Residual scores (RealFormer)",
        part="attention/score_residual",
        paper="arXiv:2012.11747",
    ),
    OptionSet("residual-attention-t5", {"residual_attn": True, "rel_pos_bias": True, "pre_norm": False, "depth": 3}),
    OptionSet("residual-attention-alibi-grouped", {"residual_attn": True, "alibi_pos_bias": True, "attn_kv_heads": 2}),
    OptionSet("residual-attention-memory", {"residual_attn": True, "attn_num_mem_kv": 2, "rotary_pos_emb": True}),
    OptionSet("residual-attention-tied", {"residual_attn": True, "weight_tie_layers": True, "depth": 3}),
    OptionSet("residual-attention-gated", {"residual_attn": True, "attn_head_scale": True, "attn_qk_norm": True}),
    OptionSet(
        "residual-attention-softclamp",
        {"residual_attn": True, "attn_softclamp_logits": True, "attn_logit_softclamp_value": 2.0},
    ),
    OptionSet("residual-attention-cope", {"residual_attn": True, "attn_use_cope": True, "attn_num_mem_kv": 2}),
    OptionSet("residual-attention-forget", {"residual_attn": True, "attn_data_dependent_alibi": True}),
    OptionSet("residual-attention-distance", {"residual_attn": True, "attn_use_rel_proj_pos_bias": True}),
    OptionSet("residual-attention-selective", {"residual_attn": True, "attn_selective": True}),
    OptionSet("residual-attention-signed", {"residual_attn": True, "attn_cog_signed": True, "attn_use_cope": True}),
    OptionSet("residual-attention-ordered", {"residual_attn": True, "layers_execute_order": (0, 1, 1, 0)}),
    OptionSet(
        "residual-attention-scaled",
        {"residual_attn": True, "attn_pre_scale_post_talking_heads": True},
        wrong="masked scores of -1e308 are mixed over heads, and 0 times that is NaN",
    ),
    OptionSet("residual-attention-values", {"residual_attn": True, "add_value_residual": True, "attn_laser": True}),
    OptionSet(
        "cross-residual-attention",
        {"cross_attend": True, "residual_attn": True, "cross_residual_attn": True},
        call=context,
        feature="Residual scores of cross attention",
        part="attention/score_residual",
        paper="arXiv:2012.11747",
    ),
    OptionSet(
        "shift-tokens",
        {"shift_tokens": 1},
        feature="Token shift",
        part="layer/token_shift",
        paper="arXiv:2305.13048",
    ),
    OptionSet(
        "shift-tokens-each",
        {"shift_tokens": (1, 0, 2, 3)},
        feature="Token shift of each sublayer",
        part="layer/token_shift.amount",
        paper="arXiv:2305.13048",
    ),
    OptionSet("shift-tokens-odd", {"shift_tokens": 4, "macaron": True, "use_layerscale": True}),
    OptionSet("shift-tokens-integrate", {"shift_tokens": 2, "integrate_layers": True, "rotary_pos_emb": True}),
    OptionSet("shift-tokens-cross", {"shift_tokens": 1, "cross_attend": True}, call=context),
    OptionSet("shift-tokens-encoder", {"shift_tokens": 2}, stack="Encoder"),
    OptionSet(
        "layers-execute-order-reversed",
        {"layers_execute_order": (2, 3, 0, 1)},
        feature="Order of execution",
        part="layer/pool",
    ),
    OptionSet(
        "layers-execute-order-left-out",
        {"layers_execute_order": (3, 0, 0, 3), "depth": 3, "rotary_pos_emb": True, "shift_tokens": 1},
    ),
    OptionSet(
        "deep-embed",
        {"depth": 3},
        {"ff_deep_embed": True},
        feature="Deep embedding (RWKV-8)",
        part="embedding/deep",
        paper="https://github.com/BlinkDL/RWKV-LM",
    ),
    OptionSet("deep-embed-macaron", {"macaron": True, "sandwich_norm": True}, {"ff_deep_embed": True}),
    OptionSet("deep-embed-shift", {"shift_tokens": 1, "integrate_layers": True}, {"ff_deep_embed": True}),
    OptionSet("deep-embed-tied", {"weight_tie_layers": True}, {"ff_deep_embed": True}),
    OptionSet("deep-embed-order", {"custom_layers": ("f", "a", "f", "a"), "depth": None}, {"ff_deep_embed": True}),
    OptionSet(
        "window-of-a-context",
        {"attn_max_attend_past": 5, "attn_kv_heads": 2},
        stack="CrossAttender",
        call=lambda ids: {
            "context": torch.randn(len(ids), 17, LAYERS["dim"], generator=torch.Generator().manual_seed(5))
        },
        feature="Limited past of a context, from its end",
        part="attention/ends_together",
    ),
    OptionSet(
        "prefix-decoder",
        stack="PrefixDecoder",
        call=lambda ids: {"prefix_attn_len": torch.tensor([3, 6, 5][: len(ids)])},
        feature="Prefix language model",
        part="attention/prefix",
        paper="arXiv:1910.10683",
    ),
    OptionSet("prefix-decoder-of-none", stack="PrefixDecoder", same=True),
    OptionSet(
        "prefix-decoder-t5",
        {"rel_pos_bias": True, "attn_kv_heads": 2, "attn_head_scale": True},
        stack="PrefixDecoder",
        call=lambda ids: {"prefix_attn_len": 4},
    ),
    OptionSet(
        "prefix-decoder-rotary",
        {"rotary_pos_emb": True, "residual_attn": True, "add_value_residual": True},
        stack="PrefixDecoder",
        call=lambda ids: {"prefix_attn_len": 4},
    ),
    OptionSet(
        "cross-attend",
        {"cross_attend": True},
        call=context,
        feature="Cross attention",
        part="mixer/cross_attention",
        same=True,
        paper="arXiv:1706.03762",
    ),
    OptionSet(
        "only-cross",
        {"cross_attend": True, "only_cross": True},
        call=context,
        feature="Cross attention alone",
        part="mixer/cross_attention",
    ),
    OptionSet(
        "cross-attn-tokens-dropout",
        {"cross_attend": True, "cross_attn_tokens_dropout": 0.4},
        call=context,
        feature="Context token dropout",
        part="layer/context_dropout",
        paper="arXiv:2202.07765",
        same=True,
    ),
]
