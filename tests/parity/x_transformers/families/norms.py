"""Norms: pointwise ones, those that go by a condition, and the places and scales of branches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.parity.x_transformers.option_set import OptionSet

NEW = ("2.31.10",)
DIT = "arXiv:2212.09748"
TANH, ERF = "arXiv:2503.10622", "arXiv:2512.10938"


def _condition(ids: Tensor) -> dict[str, Any]:
    return {"condition": torch.randn(ids.shape[0], 10, generator=torch.Generator().manual_seed(5))}


def _by_token(ids: Tensor) -> dict[str, Any]:
    return {"condition": torch.randn(*ids.shape, 24, generator=torch.Generator().manual_seed(5))}


def _set(name: str, feature: str = "", part: str = "", paper: str = "", **layers: Any) -> OptionSet:
    more = {key: layers.pop(key) for key in ("versions", "same", "wrong", "call", "stack") if key in layers}
    if layers.get("dim_condition"):
        more.setdefault("call", _condition)
    return OptionSet(f"norm-{name}", layers=layers, feature=feature, part=part, paper=paper, **more)


SETS = [
    _set("tanh", "Dynamic tanh", "norm/dynamic_tanh", TANH, use_dynamic_tanh=True),
    _set(
        "tanh-slope",
        use_dynamic_tanh=True,
        dynamic_tanh_init_alpha=0.3,
        feature="Initial slope of dynamic tanh",
        part="norm/dynamic_tanh",
        paper="arXiv:2503.10622",
    ),
    _set("tanh-no-offset", use_dynamic_tanh=True, dynamic_tanh_init_alpha=0.3, norm_add_unit_offset=False),
    _set("tanh-sandwich", use_dynamic_tanh=True, sandwich_norm=True, macaron=True),
    _set("derf", "Dynamic erf", "norm/derf", ERF, use_derf=True),
    _set("derf-no-offset", use_derf=True, norm_add_unit_offset=False),
    _set("derf-post", use_derf=True, pre_norm=False),
    _set("adaptive", "Adaptive LayerNorm", "norm/adaptive", DIT, use_adaptive_layernorm=True, dim_condition=10),
    _set("adaptive-rms", "Adaptive RMSNorm", "norm/adaptive.norm", DIT, use_adaptive_rmsnorm=True, dim_condition=10),
    _set(
        "adaptive-by-token",
        use_adaptive_layernorm=True,
        call=_by_token,
        feature="Condition of each token",
        part="norm/adaptive",
        paper="arXiv:2212.09748",
    ),
    _set("adaptive-post", use_adaptive_rmsnorm=True, dim_condition=10, pre_norm=False, stack="Encoder"),
    _set("adaptive-both", use_adaptive_rmsnorm=True, dim_condition=10, pre_and_post_norm=True),
    _set(
        "adaptive-mlp",
        "Map of the condition",
        "stack/conditioned",
        DIT,
        use_adaptive_layernorm=True,
        dim_condition=10,
        adaptive_condition_mlp=True,
    ),
    _set(
        "adaptive-mlp-expansion",
        use_adaptive_rmsnorm=True,
        dim_condition=10,
        adaptive_condition_mlp=True,
        adaptive_condition_mlp_expansion=2,
    ),
    _set(
        "adaptive-scale",
        "Adaptive layer scale",
        "layer/adaptive_branch",
        DIT,
        use_adaptive_layerscale=True,
        dim_condition=10,
    ),
    _set(
        "adaptive-zero",
        use_adaptive_layernorm=True,
        use_adaptive_layerscale=True,
        dim_condition=10,
        adaptive_condition_mlp=True,
        ff_glu=True,
        rotary_pos_emb=True,
        attn_kv_heads=2,
    ),
    _set("adaptive-scale-macaron", use_adaptive_layerscale=True, dim_condition=10, macaron=True),
    _set(
        "adaptive-scale-factors",
        use_adaptive_layerscale=True,
        dim_condition=10,
        macaron=True,
        sandwich_norm=True,
        depth_scale_residual=0.7,
        scale_residual_constant=1.5,
        versions=NEW,
    ),
    _set("adaptive-sandwich", use_adaptive_layernorm=True, dim_condition=10, sandwich_norm=True),
    _set("sandwich-macaron", sandwich_norm=True, macaron=True),
    _set("sandwich-layerscale", sandwich_norm=True, use_layerscale=True, layerscale_init_value=0.3),
    _set("sandwich-branch", sandwich_norm=True, depth_scale_residual=0.7, versions=NEW),
    _set("sandwich-dropout", sandwich_norm=True, ff_sublayer_dropout=0.1, attn_sublayer_dropout=0.1),
    _set("sandwich-stream", sandwich_norm=True, scale_residual_constant=1.5),
    _set("sandwich-both", sandwich_norm=True, pre_and_post_norm=True, use_rmsnorm=True),
    _set(
        "sandwich-all",
        sandwich_norm=True,
        macaron=True,
        use_layerscale=True,
        depth_scale_residual=0.7,
        scale_residual_constant=1.5,
        ff_sublayer_dropout=0.1,
        use_rmsnorm=True,
        versions=NEW,
    ),
    _set("layerscale-macaron", use_layerscale=True, layerscale_init_value=0.3, macaron=True),
    _set("layerscale-stream", use_layerscale=True, scale_residual_constant=1.5),
    _set("layerscale-branch", use_layerscale=True, depth_scale_residual=0.7, macaron=True, versions=NEW),
    _set("layerscale-post", use_layerscale=True, pre_norm=False, scale_residual_constant=1.5),
]
