"""What is done to scores and weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.parity.x_transformers.option_set import OptionSet

SOFTMAX = "attention/softmax"


def double_softmax(scores: Tensor) -> Tensor:
    """A function of one's own: half of it softmax, half of it softmax of twice the scores."""
    return (torch.softmax(scores, -1) + torch.softmax(2 * scores, -1)) / 2


def padded(ids: Tensor) -> dict[str, Any]:
    """The second row ends early."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, -4:] = False
    return {"mask": mask}


def context(ids: Tensor) -> dict[str, Any]:
    """Another sequence, whose second row ends early."""
    mask = torch.ones(len(ids), 9, dtype=torch.bool)
    mask[1, -3:] = False
    return {"context": torch.randn(len(ids), 9, 24), "context_mask": mask}


ALIBI = {"attn_data_dependent_alibi": True}
GROUPED = {"attn_kv_heads": 2}

SETS = [
    OptionSet(
        "softclamp",
        {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.5},
        feature="Soft-capped scores",
        part="scoring/soft_cap",
        paper="arXiv:2408.00118",
    ),
    OptionSet(
        "talking-heads-before",
        {"attn_pre_talking_heads": True},
        feature="Talking heads before softmax",
        part="scoring/talking_heads",
        paper="arXiv:2003.02436",
    ),
    OptionSet(
        "talking-heads-after",
        {"attn_post_talking_heads": True},
        feature="Talking heads after softmax",
        part="weighting/talking_heads",
        paper="arXiv:2003.02436",
    ),
    OptionSet(
        "talking-heads-scaling",
        {"attn_pre_scale_post_talking_heads": True},
        feature="Weights scaled by mixed scores",
        part="weighting/scaled_by_heads",
    ),
    OptionSet(
        "top-k",
        {"attn_sparse_topk": 3},
        feature="Top-k attention (explicit sparse)",
        part="weighting/top_k",
        paper="arXiv:1912.11637",
    ),
    OptionSet(
        "top-k-straight-through",
        {"attn_sparse_topk": 3, "attn_sparse_topk_straight_through": True},
        feature="Top-k attention with straight-through gradients",
        part="weighting/top_k.straight_through",
        paper="arXiv:2505.22074",
    ),
    OptionSet("hard", {"attn_hard": True}, feature="Hard attention", part="weighting/hard", paper="arXiv:2410.01104"),
    OptionSet(
        "sigmoid",
        {"attn_sigmoid": True},
        feature="Sigmoid attention",
        part="weighting/sigmoid",
        paper="arXiv:2409.04431",
    ),
    OptionSet(
        "cog-signed",
        {"attn_cog_signed": True},
        feature="Signed weights (cog attention)",
        part="weighting/signed",
        paper="https://openreview.net/forum?id=ezRrwwbxd0",
    ),
    OptionSet(
        "gumbel",
        {"attn_gumbel_softmax": True},
        feature="Gumbel softmax attention",
        part="weighting/gumbel",
        paper="arXiv:1611.01144",
        random=True,
    ),
    OptionSet(
        "gumbel-soft",
        {"attn_gumbel_softmax": True, "attn_gumbel_softmax_hard": False, "attn_gumbel_softmax_temp": 0.5},
        random=True,
        feature="Soft Gumbel attention",
        part="weighting/gumbel.hard",
        paper="arXiv:1611.01144",
    ),
    OptionSet(
        "selective",
        {"attn_selective": True},
        feature="Selective attention",
        part="scoring/selective",
        paper="arXiv:2410.02703",
    ),
    OptionSet(
        "sink",
        {"attn_head_learned_sink": True},
        feature="Attention sink",
        part="weighting/sink",
        paper="arXiv:2508.10925",
    ),
    OptionSet(
        "zero-kv",
        {"attn_add_zero_kv": True},
        feature="Null key and value",
        part="memory/zero",
        paper="https://www.evanmiller.org/attention-is-off-by-one.html",
    ),
    OptionSet(
        "custom-function",
        {"attn_custom_attn_fn": double_softmax},
        feature="Attention function",
        part="weighting/custom",
    ),
    OptionSet(
        "inverted",
        {"cross_attn_inverted_attention": True},
        stack="CrossAttender",
        call=context,
        feature="Inverted attention",
        part="weighting/inverted",
        paper="https://openreview.net/forum?id=WgQZNoQ5AB",
    ),
    OptionSet(
        "cope",
        {"attn_use_cope": True, "attn_cope_max_pos": 5},
        feature="Contextual positions (CoPE)",
        part="scoring/cope",
        paper="arXiv:2405.18719",
    ),
    OptionSet(
        "cope-soft",
        {"attn_use_cope": True, "attn_cope_max_pos": 5, "attn_cope_soft_onehot_pos": True},
        wrong="upstream subtracts tensors of four axes and one, and stops",
        feature="Soft positions of CoPE",
        part="scoring/cope.soft",
        paper="arXiv:2405.18719",
    ),
    OptionSet(
        "cope-talking-heads",
        {"attn_use_cope": True, "attn_cope_max_pos": 5, "attn_cope_talking_heads": True},
        feature="CoPE over mixed heads",
        part="scoring/cope.mixing",
        paper="arXiv:2405.18719",
    ),
    OptionSet(
        "forget",
        ALIBI,
        feature="Forgetting attention (data-dependent ALiBi)",
        part="scoring/forget",
        paper="arXiv:2503.02130",
    ),
    OptionSet(
        "forget-options",
        {**ALIBI, "attn_data_dependent_alibi_kwargs": {"bias_init": 1.0, "post_log_scale": 0.5}},
        feature="Start and factor of forget gates",
        part="scoring/forget.bias",
        paper="arXiv:2503.02130",
    ),
    OptionSet("forget-encoder", ALIBI, stack="Encoder"),
    OptionSet(
        "forget-rows",
        {**ALIBI, "attn_data_dependent_alibi_per_row": True, "attn_data_dependent_alibi_per_row_dim_head": 4},
        feature="Forgetting attention for each query",
        part="scoring/forget_rows",
        paper="arXiv:2503.02130",
    ),
    OptionSet(
        "projected-distance",
        {
            "attn_use_rel_proj_pos_bias": True,
            "attn_rel_proj_num_distance_basis": 5,
            "attn_rel_proj_max_dist": 6,
        },
        feature="Projected distance bias",
        part="scoring/projected_distance",
    ),
    OptionSet("onnxable", {"attn_onnxable": True}, same=True, feature="ONNX-friendly mask", part="attention/softmax"),
    OptionSet(
        "plain-kernel",
        {"attn_attend_sdp_kwargs": {"enable_flash": False, "enable_math": True, "enable_mem_efficient": False}},
        same=True,
        feature="Choice of fused kernels",
        part="attention/softmax.backend",
    ),
    OptionSet(
        "flash-pack-seq",
        {"attn_flash_pack_seq": True},
        same=True,
        incompatible="upstream packs documents with a library for GPUs alone",
        feature="Packed documents",
        part="attention/softmax",
    ),
    # Combinations.
    OptionSet(
        "scores-grouped",
        {
            **GROUPED,
            **ALIBI,
            "attn_pre_talking_heads": True,
            "attn_post_talking_heads": True,
            "attn_pre_scale_post_talking_heads": True,
            "attn_head_learned_sink": True,
            "attn_use_cope": True,
            "attn_cope_talking_heads": True,
        },
    ),
    OptionSet("forget-rows-grouped", {**GROUPED, **ALIBI, "attn_data_dependent_alibi_per_row": True}),
    OptionSet("forget-memory", {**ALIBI, "attn_num_mem_kv": 2}),
    OptionSet("selective-window", {"attn_selective": True, "attn_max_attend_past": 3, "rotary_pos_emb": True}),
    OptionSet("selective-window-grouped", {"attn_selective": True, "attn_max_attend_past": 5, "attn_kv_heads": 2}),
    OptionSet("forget-window", {**ALIBI, "attn_max_attend_past": 4}),
    OptionSet(
        "projected-distance-memory",
        {"attn_use_rel_proj_pos_bias": True, "attn_num_mem_kv": 2, **GROUPED},
        wrong="upstream adds a bias of one length to scores of another, and stops",
    ),
    OptionSet(
        "projected-distance-forget",
        {"attn_use_rel_proj_pos_bias": True, "attn_rel_proj_max_dist": 7, **ALIBI},
    ),
    OptionSet(
        "sink-softclamp-alibi",
        {
            "attn_head_learned_sink": True,
            "attn_softclamp_logits": True,
            "attn_logit_softclamp_value": 2.0,
            "alibi_pos_bias": True,
            **GROUPED,
        },
        call=padded,
    ),
    OptionSet("top-k-sink-memory", {"attn_sparse_topk": 4, "attn_head_learned_sink": True, "attn_num_mem_kv": 2}),
    OptionSet("cog-sink-cope", {"attn_cog_signed": True, "attn_head_learned_sink": True, "attn_use_cope": True}),
    OptionSet("selective-memory", {"attn_selective": True, "attn_num_mem_kv": 2, "attn_softclamp_logits": True}),
    OptionSet("cope-memory", {"attn_use_cope": True, "attn_num_mem_kv": 2, "attn_add_zero_kv": True}),
    OptionSet(
        "scaled-cosine-memory", {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_num_mem_kv": 2, **GROUPED}
    ),
    OptionSet("window-memory", {"attn_max_attend_past": 4, "attn_num_mem_kv": 2, "rotary_pos_emb": True}),
    OptionSet("sigmoid-encoder", {"attn_sigmoid": True, **GROUPED}, stack="Encoder", call=padded),
    OptionSet(
        "cross-features",
        {
            "cross_attend": True,
            "cross_attn_sparse_topk": 3,
            "cross_attn_pre_talking_heads": True,
            "cross_attn_head_learned_sink": True,
            "cross_attn_add_zero_kv": True,
        },
        call=context,
    ),
    OptionSet(
        "t5-softclamp-zero-kv",
        {
            "rel_pos_bias": True,
            "attn_softclamp_logits": True,
            "attn_logit_softclamp_value": 3.0,
            "attn_add_zero_kv": True,
        },
    ),
]
