"""Positions between queries and keys: rotations and biases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.parity.x_transformers.option_set import OptionSet

ROPE, XPOS, POPE, DYNAMIC = "arXiv:2104.09864", "arXiv:2212.10554", "arXiv:2509.10534", "arXiv:2108.00154"
CENTRE = "memories do not fade, and queries do from the middle of the sequence: their weight changes with its length"
FAILS = "fails at the first call: positions are filled in for rotations, and refused by the bias"


def _places(ids: Tensor) -> dict[str, Any]:
    return {"pos": torch.arange(ids.shape[1]) * 2 + torch.arange(ids.shape[1]) // 3}


def _context(ids: Tensor) -> dict[str, Any]:
    return {"context": torch.randn(ids.shape[0], 9, 24, generator=torch.Generator().manual_seed(5))}


def _placed_context(ids: Tensor) -> dict[str, Any]:
    return {**_context(ids), "context_pos": torch.tensor([0, 1, 2, 4, 5, 9, 10, 11, 20])}


def _set(name: str, feature: str = "", part: str = "", paper: str = "", **layers: Any) -> OptionSet:
    own = ("versions", "same", "wrong", "incompatible", "call", "stack")
    more = {key: layers.pop(key) for key in own if key in layers}
    return OptionSet(f"place-{name}", layers=layers, feature=feature, part=part, paper=paper, **more)


SETS = [
    _set("xpos", "xPos", "rotation/rotary.xpos", XPOS, rotary_xpos=True),
    _set(
        "xpos-base",
        rotary_xpos=True,
        rotary_xpos_scale_base=37,
        feature="Scale base of xPos",
        part="rotation/rotary.xpos",
        paper="arXiv:2212.10554",
    ),
    _set("xpos-all", rotary_xpos=True, rotary_emb_dim=8, rotary_interpolation_factor=2.0, attn_kv_heads=2),
    _set("xpos-given", rotary_xpos=True, rotary_xpos_scale_base=37, call=_places),
    _set("xpos-memory", rotary_xpos=True, rotary_xpos_scale_base=37, attn_num_mem_kv=2, wrong=CENTRE),
    _set("some-heads", "Rotation of some heads", "rotation/some_heads", "", rotary_pos_emb=True, rotate_num_heads=2),
    _set("some-heads-xpos", rotary_xpos=True, rotary_xpos_scale_base=37, rotate_num_heads=3, rotary_emb_dim=8),
    _set(
        "some-heads-grouped",
        rotary_pos_emb=True,
        rotate_num_heads=2,
        attn_kv_heads=2,
        incompatible="refuses some heads of grouped ones",
    ),
    _set("all-heads", rotary_pos_emb=True, rotate_num_heads=4),
    _set(
        "rotary-given",
        rotary_pos_emb=True,
        call=_places,
        feature="Positions given by the caller",
        part="rotation/rotary",
        paper="arXiv:2104.09864",
    ),
    _set("polar", "Polar positions (PoPE)", "rotation/polar", POPE, polar_pos_emb=True),
    _set("polar-encoder", polar_pos_emb=True, stack="Encoder", attn_flash=True),
    _set("polar-given", polar_pos_emb=True, call=_places),
    _set("polar-cross", polar_pos_emb=True, cross_attend=True, call=_context),
    _set("polar-norms", polar_pos_emb=True, attn_qk_rmsnorm=True, disable_abs_pos_emb=False),
    _set("polar-distance", polar_pos_emb=True, attn_l2_distance=True),
    _set(
        "polar-distance-gains",
        polar_pos_emb=True,
        attn_l2_distance=True,
        attn_qk_norm=True,
        attn_qk_norm_dim_scale=True,
    ),
    _set("polar-one-key-head", polar_pos_emb=True, attn_one_kv_head=True, depth=3),
    _set("polar-cosine", polar_pos_emb=True, attn_qk_norm=True),
    _set("polar-cosine-gains", polar_pos_emb=True, attn_qk_norm=True, attn_qk_norm_dim_scale=True),
    _set(
        "polar-uniform",
        "Uniform phases of PoPE",
        "rotation/polar.uniform_start",
        POPE,
        polar_pos_emb=True,
        polar_bias_uniform_init=True,
        incompatible="fails when it is built: a leaf is changed in place",
    ),
    _set(
        "polar-grouped",
        polar_pos_emb=True,
        attn_kv_heads=2,
        incompatible="fails at the first call: the phases are of query heads",
    ),
    _set(
        "polar-memory",
        polar_pos_emb=True,
        attn_num_mem_kv=2,
        incompatible="fails at the first call: memories are of half the features",
    ),
    _set("dynamic", "Dynamic position bias", "bias/dynamic", DYNAMIC, dynamic_pos_bias=True),
    _set(
        "dynamic-log",
        "Dynamic position bias of log distance",
        "bias/dynamic.log",
        "arXiv:2111.09883",
        dynamic_pos_bias=True,
        dynamic_pos_bias_log_distance=True,
    ),
    _set(
        "dynamic-depth",
        "Depth of the dynamic position bias",
        "bias/dynamic.layers",
        DYNAMIC,
        dynamic_pos_bias=True,
        dynamic_pos_bias_mlp_depth=3,
    ),
    _set(
        "dynamic-norm",
        "Norms in the dynamic position bias",
        "bias/dynamic.norm",
        DYNAMIC,
        dynamic_pos_bias=True,
        dynamic_pos_bias_norm=True,
        stack="Encoder",
    ),
    _set("dynamic-grouped", dynamic_pos_bias=True, attn_kv_heads=2, disable_abs_pos_emb=True, attn_num_mem_kv=2),
    _set("dynamic-cross", dynamic_pos_bias=True, cross_attend=True, call=_context),
    _set("rotary-dynamic", rotary_pos_emb=True, dynamic_pos_bias=True, wrong=FAILS),
    _set("polar-dynamic", polar_pos_emb=True, dynamic_pos_bias=True, wrong=FAILS),
    _set("rotary-t5", rotary_pos_emb=True, rel_pos_bias=True, wrong=FAILS),
    _set("rotary-alibi", rotary_pos_emb=True, alibi_pos_bias=True, attn_kv_heads=2),
    _set("polar-alibi", polar_pos_emb=True, alibi_pos_bias=True),
    _set("xpos-alibi-some", rotary_xpos=True, alibi_pos_bias=True, alibi_num_heads=2),
    _set(
        "alibi-slopes",
        "ALiBi slopes",
        "bias/alibi.slopes",
        "arXiv:2108.12409",
        alibi_pos_bias=True,
        rel_pos_kwargs={"slopes": [0.5, 0.3, 0.1, 1.5]},
    ),
    _set(
        "alibi-slopes-some",
        alibi_pos_bias=True,
        alibi_num_heads=2,
        rel_pos_kwargs={"slopes": [0.5, 0.3]},
        attn_kv_heads=2,
    ),
    _set(
        "alibi-learned",
        alibi_pos_bias=True,
        rel_pos_kwargs={"learned": True},
        incompatible="has no learned slopes",
    ),
    _set("rotary-cross", rotary_pos_emb=True, cross_attend=True, call=_context),
    _set(
        "rotary-context",
        "Rotary positions of a context",
        "attention/rotated",
        ROPE,
        rotary_pos_emb=True,
        cross_attend=True,
        call=_placed_context,
    ),
    _set(
        "rotary-context-grouped",
        rotary_pos_emb=True,
        cross_attend=True,
        attn_kv_heads=2,
        cross_attn_num_mem_kv=2,
        attn_qk_rmsnorm=True,
        stack="Encoder",
        call=_placed_context,
    ),
]
