"""How branches join the residual stream, or several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.parity.x_transformers.option_set import LAYERS, OptionSet

NEW = ("2.31.10",)
MACARON_CROSS: dict[str, Any] = {"macaron": True, "cross_attend": True}
LEAKS = "upstream projects the whole sequence at once, so that the future and padding reach a token"
MEANS = "upstream's means are over the whole sequence, the future included"
ONES = "upstream mixes the streams by a matrix of ones; keyword legacy=True is that function"
HYPER: dict[str, Any] = {"num_residual_streams": 3}
GATED: dict[str, Any] = {
    "gated_multi_residual": True,
    "num_residual_streams": 3,
    "residual_fn_kwargs": {"read_gate_rank": 5},
}


def context(ids: Tensor) -> dict[str, Any]:
    """Features that cross attention reads."""
    return {"context": torch.randn(len(ids), 5, LAYERS["dim"], generator=torch.Generator().manual_seed(5))}


def condition(ids: Tensor) -> dict[str, Any]:
    """What adaptive norms go by."""
    return {"condition": torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(6))}


def padding(ids: Tensor) -> dict[str, Any]:
    """Rows of unlike lengths."""
    return {"mask": torch.arange(ids.shape[1]) < torch.tensor([ids.shape[1], 4] * len(ids))[: len(ids), None]}


SETS = [
    OptionSet(
        "gate-residual",
        {"gate_residual": True},
        feature="GRU-gated residual",
        part="residual/gru",
        paper="arXiv:1910.06764",
    ),
    OptionSet("gate-residual-scaled", {"gate_residual": True, "scale_residual": True}),
    OptionSet("gate-residual-post-norm", {"gate_residual": True, "pre_norm": False}),
    OptionSet("gate-residual-layerscale-macaron", {"gate_residual": True, "use_layerscale": True, "macaron": True}),
    OptionSet("gate-residual-cross", {"gate_residual": True, "cross_attend": True, "depth": 1}, call=context),
    OptionSet("gate-residual-tied", {"gate_residual": True, "weight_tie_layers": True}),
    OptionSet(
        "scale-residual",
        {"scale_residual": True},
        feature="Learned residual scale (NormFormer)",
        part="residual/scaled_stream",
        paper="arXiv:2110.09456",
    ),
    OptionSet("scale-residual-number", {"scale_residual": 0.7, "scale_residual_constant": 1.3}, versions=NEW),
    OptionSet(
        "scale-residual-constant",
        {"scale_residual_constant": 1.4},
        feature="Constant residual scale",
        part="residual/scaled.alpha",
    ),
    OptionSet("scale-residual-macaron", {"scale_residual": True, "macaron": True}),
    OptionSet(
        "depth-scale-residual-number",
        {"depth_scale_residual": 0.4},
        feature="Constant branch scale",
        part="residual/scaled.beta",
        versions=NEW,
    ),
    OptionSet("depth-scale-residual-macaron", {"depth_scale_residual": 0.4, "macaron": True}, versions=NEW),
    OptionSet(
        "orthog-residual",
        {"orthog_residual": True},
        feature="Orthogonal residual update",
        part="residual/orthogonal",
        paper="arXiv:2505.11881",
        wrong=LEAKS,
    ),
    OptionSet("orthog-residual-scaled", {"orthog_residual": True, "scale_residual": True}, wrong=LEAKS),
    OptionSet(
        "mv-split-residual",
        {"mv_split_residual": True},
        feature="Mean-variance split residual",
        part="residual/mean_split",
        paper="arXiv:2605.06169",
        wrong=MEANS,
    ),
    OptionSet(
        "mv-split-residual-learned",
        {"mv_split_residual": True, "residual_fn_kwargs": {"learned": True, "init_alpha": 0.2}},
        wrong=MEANS,
        feature="Learned mean-variance split",
        part="residual/mean_split.learned",
        paper="arXiv:2605.06169",
    ),
    OptionSet("mv-split-residual-encoder", {"mv_split_residual": True}, stack="Encoder"),
    OptionSet("mv-split-residual-padding", {"mv_split_residual": True}, stack="Encoder", call=padding),
    OptionSet(
        "mv-split-residual-learned-encoder",
        {"mv_split_residual": True, "residual_fn_kwargs": {"learned": True, "init_beta": 0.1}},
        stack="Encoder",
    ),
    OptionSet(
        "layerscale",
        {"use_layerscale": True, "layerscale_init_value": 0.3},
        feature="LayerScale",
        part="residual/layer_scale",
        paper="arXiv:2103.17239",
    ),
    OptionSet("layerscale-macaron", {"use_layerscale": True, "macaron": True}),
    OptionSet("layerscale-scaled-branches", {"use_layerscale": True, "depth_scale_residual": 0.5}, versions=NEW),
    OptionSet(
        "layerscale-macaron-scaled-branches",
        {"use_layerscale": True, "depth_scale_residual": 2.0, "macaron": True},
        versions=NEW,
    ),
    OptionSet("layerscale-sandwich-norm", {"use_layerscale": True, "sandwich_norm": True, "macaron": True}),
    OptionSet("layerscale-no-unit-offset", {"use_layerscale": True, "norm_add_unit_offset": False}),
    OptionSet("macaron", {"macaron": True}, feature="", part="residual/scaled.beta", paper="arXiv:1906.02762"),
    OptionSet("macaron-sandwich-norm", {"macaron": True, "sandwich_norm": True}),
    OptionSet("macaron-post-norm-rmsnorm", {"macaron": True, "pre_norm": False, "use_rmsnorm": True}),
    OptionSet(
        "softclamp-output",
        {"softclamp_output": True, "softclamp_output_value": 3.0},
        feature="Bounded output features",
        part="norm/soft_clamp",
        paper="arXiv:2408.00118",
    ),
    OptionSet(
        "softclamp-output-post-norm",
        {"softclamp_output": True, "softclamp_output_value": 0.7, "pre_norm": False},
    ),
    OptionSet(
        "zero-init-branch-output",
        {"zero_init_branch_output": True},
        feature="Zero-initialised branches",
        part="layer/branch_start",
        paper="arXiv:1901.09321",
        same=True,
    ),
    OptionSet(
        "attn-zero-init-output",
        {"attn_zero_init_output": True},
        feature="Zero-initialised attention output",
        part="layer/branch_start",
        same=True,
    ),
    OptionSet("zero-init-cross", {"zero_init_branch_output": True, **MACARON_CROSS}, call=context),
    OptionSet(
        "depth-scale-residual",
        {"depth_scale_residual": True},
        feature="Branch start scaled by depth",
        part="layer/branch_start.scale",
        versions=NEW,
        same=True,
    ),
    OptionSet(
        "layer-dropout",
        {"layer_dropout": 0.3},
        feature="Layer dropout (stochastic depth)",
        part="layer/sublayer.layer_drop",
        paper="arXiv:1909.11556",
        same=True,
    ),
    OptionSet(
        "layer-dropout-tuple",
        {"layer_dropout": (0.0, 0.1, 0.2, 0.3)},
        same=True,
        feature="Layer dropout of each sublayer",
        part="layer/sublayer.layer_drop",
        paper="arXiv:1909.11556",
    ),
    OptionSet(
        "residual-streams",
        HYPER,
        feature="Hyper-connections",
        part="residual/hyper_connection",
        paper="arXiv:2512.24880, arXiv:2409.19606",
        wrong=ONES,
        incompatible=ONES,
    ),
    OptionSet(
        "residual-streams-views",
        {**HYPER, "qkv_receive_diff_residuals": True, "hyper_conn_sinkhorn_iters": 9},
        feature="Hyper-connections with separate queries, keys and values",
        part="residual/hyper_connection.input_views",
        paper="arXiv:2409.19606",
        wrong=ONES,
        incompatible=ONES,
    ),
    OptionSet(
        "residual-streams-legacy",
        HYPER,
        ours={"legacy": True},
        feature="Hyper-connections of upstream's checkpoints",
        part="residual/hyper_connection.legacy",
        paper="arXiv:2409.19606",
    ),
    OptionSet("residual-streams-legacy-views", {**HYPER, "qkv_receive_diff_residuals": True}, ours={"legacy": True}),
    OptionSet(
        "residual-streams-legacy-sandwich-macaron",
        {**HYPER, "sandwich_norm": True, "macaron": True, "use_layerscale": True},
        ours={"legacy": True},
    ),
    OptionSet(
        "residual-streams-legacy-post-norm-tied",
        {**HYPER, "pre_norm": False, "weight_tie_layers": True},
        ours={"legacy": True},
    ),
    OptionSet(
        "residual-streams-legacy-clamped-rotary",
        {**HYPER, "softclamp_output": True, "softclamp_output_value": 5.0, "rotary_pos_emb": True},
        ours={"legacy": True},
    ),
    OptionSet("residual-streams-legacy-cross", {**HYPER, **MACARON_CROSS}, ours={"legacy": True}, call=context),
    OptionSet(
        "residual-streams-legacy-values-shifted",
        {**HYPER, "add_value_residual": True, "shift_tokens": 1, "qkv_receive_diff_residuals": True},
        ours={"legacy": True},
    ),
    OptionSet("residual-streams-legacy-mixed-layers", {**HYPER, "integrate_layers": True}, ours={"legacy": True}),
    OptionSet("residual-streams-legacy-skips", {**HYPER, "unet_skips": True, "depth": 4}, ours={"legacy": True}),
    OptionSet(
        "residual-streams-legacy-adaptive",
        {**HYPER, "use_adaptive_layernorm": True, "use_adaptive_layerscale": True, "dim_condition": 6},
        ours={"legacy": True},
        call=condition,
    ),
    OptionSet(
        "residual-streams-legacy-memory",
        {**HYPER, "attn_num_mem_kv": 2},
        {"num_memory_tokens": 2},
        ours={"legacy": True},
    ),
    OptionSet(
        "gated-multi-residual",
        GATED,
        feature="Gated multi-stream residual",
        part="residual/gated_multi",
        paper="https://qwen.ai/blog?id=qwen3.8-flash-next",
        versions=NEW,
    ),
    OptionSet("gated-multi-residual-views", {**GATED, "qkv_receive_diff_residuals": True}, versions=NEW),
    OptionSet("gated-multi-residual-one-stream", {**GATED, "num_residual_streams": 1}, versions=NEW),
    OptionSet(
        "gated-multi-residual-pre-and-post-norm", {**GATED, "pre_and_post_norm": True, "macaron": True}, versions=NEW
    ),
]
