"""Architectures by name: the keywords that make them, as far as x-transformers has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.x_transformers.option_set import LAYERS, VERSIONS, OptionSet

NEW = ("2.31.10",)
NO_POSITIONS: dict[str, Any] = {"use_abs_pos_emb": False}
SWIGLU: dict[str, Any] = {"ff_glu": True, "ff_swish": True, "ff_no_bias": True}
ROTARY: dict[str, Any] = {"rotary_pos_emb": True, "rotary_emb_dim": 8}
LLAMA: dict[str, Any] = {"use_rmsnorm": True, **ROTARY, **SWIGLU}
LATENT: dict[str, Any] = {
    "attn_use_latent_q": True,
    "attn_dim_latent_q": 12,
    "attn_use_latent_kv": True,
    "attn_dim_latent_kv": 10,
    "attn_latent_rope_subheads": 1,
}


def padding(ids: Tensor) -> dict[str, Any]:
    """Rows of unlike lengths."""
    return {"mask": torch.arange(ids.shape[1]) < torch.tensor([ids.shape[1], 8] * len(ids))[: len(ids), None]}


def context(ids: Tensor) -> dict[str, Any]:
    """What an encoder would give, whose second row is shorter."""
    features = torch.randn(len(ids), 6, LAYERS["dim"], generator=torch.Generator().manual_seed(5))
    return {"context": features, "context_mask": torch.arange(6) < torch.tensor([[6], [4], [5]])[: len(ids)]}


def remembers(ids: Tensor) -> dict[str, Any]:
    """Memories of two self-attentions."""
    draw = torch.Generator().manual_seed(8)
    return {"mems": [torch.randn(len(ids), 5, LAYERS["dim"], generator=draw, dtype=torch.float64) for _ in range(2)]}


def condition(ids: Tensor) -> dict[str, Any]:
    """A time step or a class, as a vector."""
    return {"condition": torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(2))}


def _set(
    name: str, model: dict[str, Any] | None = None, versions: tuple[str, ...] = VERSIONS, **layers: Any
) -> OptionSet:
    more = {key: layers.pop(key) for key in ("call", "stack", "ours", "decodes", "why_not") if key in layers}
    return OptionSet(name, layers, model or {}, versions=versions, **more)


SETS = [
    _set("gpt-2", {"tie_embedding": True}, NEW),
    _set("bert", stack="Encoder", call=padding, pre_norm=False),
    _set("t5-encoder", stack="Encoder", call=padding, use_rmsnorm=True, rel_pos_bias=True, ff_relu_squared=True),
    _set(
        "t5-decoder", call=context, cross_attend=True, use_rmsnorm=True, rel_pos_bias=True, ff_glu=True, ff_no_bias=True
    ),
    _set("llama", **LLAMA, attn_kv_heads=2, ff_mult=2.5),
    _set("llama-with-attention-sinks", {"num_memory_tokens": 2}, **LLAMA, attn_kv_heads=2),
    _set("palm", {"tie_embedding": True}, NEW, **ROTARY, **SWIGLU, attn_one_kv_head=True),
    _set("gpt-j", **{**ROTARY, "rotary_emb_dim": 4}),
    _set("bloom", {"post_emb_norm": True, **NO_POSITIONS}, alibi_pos_bias=True),
    _set("mpt", NO_POSITIONS, alibi_pos_bias=True, attn_qk_rmsnorm=True, ff_no_bias=True),
    _set("cohere", **ROTARY, **SWIGLU, attn_kv_heads=2, use_simple_rmsnorm=True),
    _set(
        "gemma-2",
        **LLAMA,
        attn_kv_heads=2,
        sandwich_norm=True,
        attn_softclamp_logits=True,
        attn_logit_softclamp_value=2.0,
        softclamp_output=True,
        softclamp_output_value=3.0,
    ),
    _set("gemma-3", **LLAMA, attn_kv_heads=2, sandwich_norm=True, attn_qk_rmsnorm=True, attn_max_attend_past=4),
    _set("qwen-3", **LLAMA, attn_kv_heads=2, attn_qk_rmsnorm=True),
    _set("qwen-3-next", **LLAMA, attn_kv_heads=2, attn_qk_rmsnorm=True, attn_gate_values=True),
    _set("gpt-oss", **LLAMA, attn_kv_heads=2, attn_head_learned_sink=True, attn_max_attend_past=(4, None)),
    _set("mistral", **LLAMA, attn_kv_heads=2, attn_max_attend_past=4),
    _set("deepseek-v2", **LLAMA, **LATENT),
    _set("deepseek-v3-with-streams", ours={"legacy": True}, num_residual_streams=2, **LLAMA, **LATENT),
    _set("olmo-2", **LLAMA, attn_qk_rmsnorm=True, pre_norm=False),
    _set("vit-22b", stack="Encoder", attn_qk_norm=True, attn_qk_norm_dim_scale=True, ff_no_bias=True),
    _set(
        "swin-v2-attention",
        stack="Encoder",
        attn_qk_norm=True,
        dynamic_pos_bias=True,
        dynamic_pos_bias_log_distance=True,
    ),
    _set(
        "normformer",
        attn_head_scale=True,
        ff_post_act_ln=True,
        scale_residual=True,
        sandwich_norm=True,
    ),
    _set("macaron", macaron=True, rel_pos_bias=True),
    _set("sandwich-transformer", depth=3, sandwich_coef=1),
    _set("par-transformer", depth=5, par_ratio=5),
    _set("realformer", residual_attn=True, pre_norm=False),
    _set(
        "realformer-t5-decoder",
        call=context,
        residual_attn=True,
        cross_residual_attn=True,
        cross_attend=True,
        rel_pos_bias=True,
    ),
    _set("primer", ff_relu_squared=True, shift_tokens=1),
    _set("rwkv-like-mixing", {"post_emb_norm": True}, shift_tokens=(1, 0, 1, 0), ff_relu_squared=True, ff_no_bias=True),
    _set("transformer-xl", {"max_mem_len": 8}, call=remembers, rel_pos_bias=True),
    _set("transformer-xl-rotary", {"max_mem_len": 8}, call=remembers, **LLAMA),
    _set("ernie-doc", {"max_mem_len": 8, "shift_mem_down": 1}, call=remembers, rotary_pos_emb=True),
    _set("albert", stack="Encoder", call=padding, weight_tie_layers=True, depth=3, model={"emb_dim": 12}),
    _set("universal-transformer", weight_tie_layers=True, depth=3, gate_residual=True, reinject_input=True),
    _set("gtrxl", gate_residual=True),
    _set("fixnorm-scalenorm", {"l2norm_embed": True}, use_scalenorm=True),
    _set(
        "cait",
        stack="Encoder",
        use_layerscale=True,
        layerscale_init_value=0.2,
        attn_pre_talking_heads=True,
        attn_post_talking_heads=True,
    ),
    _set(
        "talking-heads-cope",
        attn_pre_talking_heads=True,
        attn_post_talking_heads=True,
        attn_use_cope=True,
        attn_cope_max_pos=5,
        attn_cope_talking_heads=True,
    ),
    _set(
        "forgetting-transformer",
        NO_POSITIONS,
        use_rmsnorm=True,
        attn_data_dependent_alibi=True,
        attn_qk_rmsnorm=True,
        shift_tokens=1,
        **SWIGLU,
    ),
    _set("selective-transformer", attn_selective=True, use_rmsnorm=True, attn_kv_heads=2),
    _set(
        "sigmoid-attention",
        NO_POSITIONS,
        alibi_pos_bias=True,
        attn_sigmoid=True,
        use_layerscale=True,
        layerscale_init_value=0.3,
    ),
    _set(
        "hymba",
        **LLAMA,
        attn_kv_heads=2,
        attn_num_mem_kv=2,
        attn_hybrid_module=nn.GRU(24, 32, batch_first=True),
        attn_hybrid_fold_axial_dim=1,
    ),
    _set("lime-value-residual", **LLAMA, integrate_layers=True, add_value_residual=True),
    _set("resformer", **LLAMA, add_value_residual=True),
    _set("hyper-connections", ours={"legacy": True}, num_residual_streams=4, use_rmsnorm=True, **ROTARY),
    _set("no-norms", use_dynamic_tanh=True, dynamic_tanh_init_alpha=0.5, **ROTARY, **SWIGLU),
    _set("derf-encoder", stack="Encoder", call=padding, use_derf=True, attn_value_rmsnorm=True),
    _set(
        "dit",
        stack="Encoder",
        call=condition,
        use_adaptive_layernorm=True,
        use_adaptive_layerscale=True,
        dim_condition=6,
    ),
    _set("u-vit", stack="Encoder", depth=3, unet_skips=True, model={"num_memory_tokens": 2}),
    _set("persistent-memory", only_attn=True, versions=NEW, attn_num_mem_kv=3, attn_gate_values=True),
    _set(
        "alphafold-like",
        {"recycling": True},
        stack="Encoder",
        call=lambda ids: {**padding(ids), "recycle_steps": 2},
        attn_gate_values=True,
        rel_pos_bias=True,
    ),
    _set("laser-palm", attn_one_kv_head=True, attn_laser=True, **ROTARY, **SWIGLU),
    _set("xpos-retnet-like", rotary_xpos=True, rotary_pos_emb=True, use_rmsnorm=True, attn_on_attn=True),
    _set("perceiver-decoder", stack="CrossAttender", call=context, cross_attn_num_mem_kv=2, ff_glu=True),
    _set("prefix-lm", stack="PrefixDecoder", call=lambda ids: {"prefix_attn_len": 5}, rel_pos_bias=True, **SWIGLU),
    _set("mixture-of-softmaxes", {"mixture_of_softmax": True, "mixture_of_softmax_k": 3}, **ROTARY),
    _set("polar-llama", polar_pos_emb=True, use_rmsnorm=True, **SWIGLU),
    _set(
        "looped-language-model",
        {"looped": True, "max_looped_steps": 2},
        pre_and_post_norm=True,
        use_rmsnorm=True,
        **ROTARY,
    ),
]
