"""Every keyword of layers that is taken changes what is built: one by one, with what it needs beside it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from variform.core.spec import Spec
from variform.dialects.x_transformers import AttentionLayers
from variform.dialects.x_transformers.errors import KeywordError
from variform.dialects.x_transformers.routes import LAYERS, PREFIXES
from variform.dialects.x_transformers.table import Table

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4, "causal": True}
TABLES: dict[str, Table] = {"": LAYERS, **PREFIXES}

NO_FUNCTION = {
    "verbose": "there are no messages",
    "norm_add_unit_offset": "how checkpoints store gains",
    "disable_abs_pos_emb": "it is of the model around",
    **dict.fromkeys(("attn_flash", "cross_attn_flash"), "the fastest kernel is chosen"),
    **dict.fromkeys(("attn_onnxable", "cross_attn_onnxable"), "masks are exported anyway"),
    "attn_flash_pack_seq": "documents are an argument of calls",
}
"""Keywords that change nothing here, and why."""

VALUES: dict[str, Any] = {
    "depth": 3,
    "heads": 2,
    "dim_condition": 7,
    "residual_fn_kwargs": {"learned": True},
    "rel_pos_kwargs": {"learned": True},
    "rel_pos_num_buckets": 30,
    "custom_layers": ("a", "f", "a", "f", "c"),
    "layers_execute_order": (1, 0, 2, 3),
    "sandwich_coef": 1,
    "par_ratio": 2,
    "shift_tokens": 1,
    "disable_abs_pos_emb": True,
    "alibi_num_heads": 2,
    "rotary_emb_dim": 4,
    "rotate_num_heads": 2,
    "num_residual_streams": 2,
    "attn_aggregated_residual_kwargs": {"lora_rank": 4},
    "attn_residuals_last_output_as_query": True,
    "kv_heads": 2,
    "dim_context": 8,
    "max_attend_past": 3,
    "project_out": False,
    "num_mem_kv": 2,
    "part": "linear",
    "sparse_topk": 2,
    "custom_attn_fn": torch.sigmoid,
    "data_dependent_alibi_kwargs": {"post_log_scale": 2.0},
    "attend_sdp_kwargs": {"enable_flash": False, "enable_mem_efficient": False},
    "gate_values_rank": 2,
    "output_gate_rank": 2,
    "hybrid_module": "gru",
    "hybrid_mask_kwarg": "mask",
    "hybrid_fold_axial_dim": 2,
    "value_dim_head": 6,
    "dim_out": 8,
    "dim_latent_q": 3,
    "dim_latent_kv": 3,
    "latent_rope_subheads": 2,
    "custom_activation": nn.Softplus(),
    "softclamp_value": 3.0,
    "output_proj_depth": 3,
}
"""Another value than the default, where it is no flag and no number."""

ADAPTIVE: dict[str, Any] = {"use_adaptive_rmsnorm": True}
ROTARY: dict[str, Any] = {"rotary_pos_emb": True, "attn_dim_head": 16}
STREAMS: dict[str, Any] = {"num_residual_streams": 2}
BESIDE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("dim_condition", "adaptive_condition_mlp", "adaptive_condition_mlp_expansion"), ADAPTIVE),
    **dict.fromkeys(("rotary_interpolation_factor", "rotary_base_rescale_factor", "rotate_num_heads"), ROTARY),
    "rotary_emb_dim": ROTARY,
    "residual_fn_kwargs": {"mv_split_residual": True},
    "gated_multi_residual": {"residual_fn_kwargs": {"read_gate_rank": 3}},
    "rel_pos_kwargs": {"alibi_pos_bias": True},
    "custom_layers": {"depth": None, "cross_attend": True},
    **dict.fromkeys(("legacy", "qkv_receive_diff_residuals", "hyper_conn_sinkhorn_iters"), STREAMS),
    "attn_aggregated_residuals": {"dim": 80},
    "swiglu_values": {"gate_values": True},
    "low_rank_silu_gates": {"gate_values": True, "gate_values_rank": 2},
    "use_latent_q": {"dim_latent_q": 3},
    "use_latent_kv": {"dim_latent_kv": 3},
    "glu_gate_softclamp_value": {"glu": True},
}
"""What a keyword needs beside those that its route names."""

ELSEWHERE = re.compile(
    r"(attn_dim_context|attn_inverted_attention|ff_dim_out|(cross_)?attn_dim_out|(cross_)?attn_hybrid_mask_kwarg|"
    r"cross_attn_(selective|data_dependent_alibi\w*|\w*rel_proj\w*|\w*cope\w*|inverted_attention|"
    r"flash_pack_seq|orthog_projected_values\w*))"
)
"""Keywords that a stack of causal layers refuses, whatever their value."""


def another(name: str, default: Any) -> Any:
    """A value that is not the default."""
    if name in VALUES:
        return VALUES[name]
    if isinstance(default, bool):
        return not default
    return default + 1 if default >= 1 else 0.3


def needed(table: Table, prefix: str, name: str) -> dict[str, Any]:
    """What has to be given beside a keyword for it to have an effect."""

    def named(given: dict[str, Any]) -> dict[str, Any]:
        return {key if key in LAYERS or key.startswith("attn_") else prefix + key: x for key, x in given.items()}

    found = named(BESIDE.get(name, {}))
    while name := table[name].needs:
        found |= {prefix + name: VALUES.get(name, True), **named(BESIDE.get(name, {}))}
    return found


def built(**keywords: Any) -> Spec | None:
    """What is built; None where it is refused."""
    try:
        return AttentionLayers(**keywords).spec
    except KeywordError:
        return None


KEYWORDS = [(prefix, name) for prefix, table in TABLES.items() for name in table if name not in ("dim", "causal")]


@pytest.mark.parametrize(("prefix", "name"), KEYWORDS, ids=lambda part: part)
def test_it_has_an_effect_or_is_refused(prefix: str, name: str) -> None:
    table, keyword = TABLES[prefix], prefix + name
    cross = {"cross_attend": True} if prefix == "cross_attn_" else {}
    around = {**SMALL, **cross, **needed(table, prefix, name)}
    if keyword not in SMALL:
        around.pop(keyword, None)
    given = {**around, keyword: another(name, table[name].default)}
    if ELSEWHERE.fullmatch(keyword):
        with pytest.raises(KeywordError, match=prefix):
            AttentionLayers(**given)
    else:
        assert (AttentionLayers(**given).spec == built(**around)) == (keyword in NO_FUNCTION)
