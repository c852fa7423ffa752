"""The routing table of attention keywords: those of every attention here, those of the families beside it."""

from __future__ import annotations

from variform.core.spec import Spec
from variform.dialects.x_transformers.attention.families import FAMILIES
from variform.dialects.x_transformers.table import Route, Table, put

ATTENTION: Table = {
    "dim_head": Route(64, put("dim_head"), types=(int,)),
    "flash": Route(False, put("flash")),  # one function either way: the fastest kernel that computes it is chosen
    "dropout": Route(0.0, put("dropout"), types=(int, float)),
    "sublayer_dropout": Route(0.0, put("sublayer_dropout"), types=(int, float)),
    "kv_heads": Route(None, put("kv_heads"), types=(int,)),
    "one_kv_head": Route(False, put("one_kv_head")),
    "dim_context": Route(None, put("dim_context"), types=(int,)),
    "max_attend_past": Route(None, put("max_attend_past"), types=(int,)),
    "project_out": Route(None, put("project_out"), types=(bool,)),
    "num_mem_kv": Route(0, put("num_mem_kv"), types=(int,)),
    "qk_norm": Route(False, put("qk_norm")),
    "qk_norm_scale": Route(10, put("qk_norm_scale"), needs="qk_norm", types=(int, float)),
    "qk_norm_dim_scale": Route(False, put("qk_norm_dim_scale"), needs="qk_norm"),
    "qk_rmsnorm": Route(False, put("qk_rmsnorm")),
    "k_rmsnorm": Route(False, put("k_rmsnorm")),
    "part": Route(None, put("part"), types=(str, dict, Spec)),  # of this library alone: any registered attention
    **{name: route for family in FAMILIES for name, route in family.ROUTES.items()},
}
"""Keyword (without `attn_`) -> what it does to an `AttentionDraft`."""
