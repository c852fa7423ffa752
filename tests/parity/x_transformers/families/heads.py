"""What surrounds the heads: gates, norms of heads, values, projections, latent and hybrid attention."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.parity.x_transformers.option_set import OptionSet

GATES: dict[str, Any] = {"attn_gate_values": True, "attn_output_gate": True}
LATENT: dict[str, Any] = {"attn_use_latent_kv": True, "attn_dim_latent_kv": 7}
HYBRID: dict[str, Any] = {
    "attn_hybrid_module": nn.GRU(24, 32, batch_first=True),
    "attn_hybrid_fold_axial_dim": 1,
}

SETS = [
    OptionSet(
        "head-scale",
        {"attn_head_scale": True},
        feature="Head scale (NormFormer)",
        part="attention/head_scale",
        paper="arXiv:2110.09456",
    ),
    OptionSet("head-scale-grouped", {"attn_head_scale": True, "attn_kv_heads": 2}),
    OptionSet(
        "gate-value-heads",
        {"attn_gate_value_heads": True},
        feature="Head gates (attend to nothing)",
        part="attention/gated.input_per_head",
        paper="arXiv:2306.12929",
    ),
    OptionSet("gate-value-heads-grouped", {"attn_gate_value_heads": True, "attn_one_kv_head": True}),
    OptionSet(
        "gate-values",
        {"attn_gate_values": True},
        feature="Value gate",
        part="attention/gated.input_gate",
        paper="https://doi.org/10.1038/s41586-021-03819-2",
    ),
    OptionSet(
        "gate-values-rank",
        {"attn_gate_values": True, "attn_gate_values_rank": 5},
        feature="Low-rank value gate",
        part="projection/low_rank.rank",
        paper="arXiv:2608.11805",
    ),
    OptionSet(
        "gate-values-rank-linear",
        {"attn_gate_values": True, "attn_gate_values_rank": 5, "attn_low_rank_silu_gates": False},
        feature="Linear low-rank value gate",
        part="projection/low_rank.activation",
    ),
    OptionSet(
        "gate-values-headwise",
        {"attn_gate_values": True, "attn_gate_values_headwise": True},
        feature="Value gate for each head",
        part="attention/gated.input_per_head",
    ),
    OptionSet(
        "swiglu-values",
        {"attn_gate_values": True, "attn_swiglu_values": True},
        feature="SiLU value gate",
        part="attention/gated.activation",
    ),
    OptionSet(
        "output-gate",
        {"attn_output_gate": True},
        feature="Output gate (HyGA)",
        part="attention/gated.output_gate",
        paper="arXiv:2608.11805",
    ),
    OptionSet(
        "output-gate-rank",
        {"attn_output_gate": True, "attn_output_gate_rank": 3, "attn_kv_heads": 2},
        feature="Low-rank output gate",
        part="projection/low_rank.rank",
        paper="arXiv:2608.11805",
    ),
    OptionSet(
        "output-gate-headwise",
        {"attn_output_gate": True, "attn_output_gate_headwise": True},
        feature="Output gate for each head",
        part="attention/gated.output_per_head",
        paper="arXiv:2608.11805",
    ),
    OptionSet(
        "both-gates-grouped",
        {**GATES, "attn_gate_values_headwise": True, "attn_output_gate_rank": 3, "attn_kv_heads": 2},
    ),
    OptionSet(
        "both-gates-memory-rotary",
        {**GATES, "attn_kv_heads": 2, "attn_num_mem_kv": 2, "rotary_pos_emb": True, "attn_gate_value_heads": True},
    ),
    OptionSet(
        "value-rmsnorm",
        {"attn_value_rmsnorm": True},
        feature="RMSNorm of values",
        part="attention/value_norm",
    ),
    OptionSet(
        "value-rmsnorm-grouped",
        {"attn_value_rmsnorm": True, "attn_kv_heads": 2},
        wrong="upstream has a gain for each query head and fails where values have fewer heads",
        incompatible="upstream has a gain for each query head, and no model to load them into",
    ),
    OptionSet(
        "l2-distance",
        {"attn_l2_distance": True},
        feature="Distance attention",
        part="attention/l2_distance",
        paper="arXiv:2006.04710",
    ),
    OptionSet("l2-distance-flash", {"attn_l2_distance": True, "attn_flash": True, "attn_kv_heads": 2}),
    OptionSet("l2-distance-memory", {"attn_l2_distance": True, "attn_num_mem_kv": 2, "alibi_pos_bias": True}),
    OptionSet("l2-distance-window", {"attn_l2_distance": True, "attn_max_attend_past": 4, "rotary_pos_emb": True}),
    OptionSet("l2-distance-cosine", {"attn_l2_distance": True, "attn_qk_norm": True}),
    OptionSet(
        "laser",
        {"attn_laser": True},
        feature="LASER",
        part="attention/laser",
        paper="arXiv:2411.03493",
    ),
    OptionSet("laser-clamp", {"attn_laser": True, "attn_laser_softclamp_value": 2.0, "attn_num_mem_kv": 2}),
    OptionSet("laser-grouped-flash", {"attn_laser": True, "attn_kv_heads": 2, "attn_flash": True}),
    OptionSet("laser-value-rmsnorm", {"attn_laser": True, "attn_value_rmsnorm": True, "attn_gate_values": True}),
    OptionSet(
        "orthogonal-values",
        {"attn_orthog_projected_values": True},
        feature="Orthogonal attention output",
        part="attention/orthogonal_values",
        paper="https://openreview.net/forum?id=Ard2QzPAUK",
        wrong="upstream projects over all tokens at once, the future included",
    ),
    OptionSet(
        "orthogonal-values-per-head",
        {"attn_orthog_projected_values_per_head": True, "attn_kv_heads": 2},
        feature="Orthogonal attention output for each head",
        part="attention/orthogonal_values.over",
        paper="https://openreview.net/forum?id=Ard2QzPAUK",
        wrong="upstream computes the same as for all heads together, over all tokens at once",
    ),
    OptionSet(
        "orthogonal-values-both",
        {
            "attn_orthog_projected_values": True,
            "attn_orthog_projected_values_per_head": True,
            "attn_kv_heads": 2,
            "attn_gate_values": True,
        },
        feature="Both orthogonal attention outputs",
        part="attention/orthogonal_values.over",
        paper="https://openreview.net/forum?id=Ard2QzPAUK",
        wrong="upstream projects over all tokens at once, both times alike",
    ),
    OptionSet(
        "qk-norm-groups",
        {"attn_qk_norm": True, "attn_qk_norm_groups": 2},
        part="norm/grouped_rms_norm",
        feature="Grouped cosine attention",
        paper="arXiv:2010.04245",
    ),
    OptionSet(
        "qk-norm-groups-dim-scale",
        {"attn_qk_norm": True, "attn_qk_norm_groups": 2, "attn_qk_norm_dim_scale": True, "attn_kv_heads": 2},
    ),
    OptionSet(
        "qk-norm-dim-scale-memory",
        {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_num_mem_kv": 2, "attn_kv_heads": 2},
    ),
    OptionSet("heads-of-one-feature", {"attn_dim_head": 1}),
    OptionSet("laser-zero-kv-distance", {"attn_laser": True, "attn_add_zero_kv": True, "attn_l2_distance": True}),
    OptionSet("laser-zero-kv-alone", {"attn_laser": True, "attn_add_zero_kv": True}),
    OptionSet("laser-zero-kv", {"attn_laser": True, "attn_add_zero_kv": True, "attn_num_mem_kv": 2}),
    OptionSet("l2-distance-zero-kv", {"attn_l2_distance": True, "attn_add_zero_kv": True, "attn_num_mem_kv": 2}),
    OptionSet(
        "on-attn",
        {"attn_on_attn": True},
        feature="Attention on attention",
        part="projection/glu",
        paper="arXiv:1908.06954",
    ),
    OptionSet("on-attn-grouped", {"attn_on_attn": True, "attn_kv_heads": 2, "attn_value_dim_head": 5}),
    OptionSet(
        "value-dim-head",
        {"attn_value_dim_head": 5},
        feature="Value width",
        part="key_values/linear.dim_value",
    ),
    OptionSet(
        "value-dim-head-grouped-gated",
        {"attn_value_dim_head": 5, "attn_kv_heads": 2, "attn_gate_values": True, "rotary_pos_emb": True},
    ),
    OptionSet(
        "no-output-map",
        {"attn_project_out": False, "attn_dim_head": 6},
        feature="Heads without an output map",
        part="projection/identity",
    ),
    OptionSet(
        "no-output-map-grouped",
        {"attn_project_out": False, "attn_dim_head": 6, "attn_kv_heads": 2, "rotary_pos_emb": True},
        feature="Grouped heads without an output map",
        part="projection/head_order",
    ),
    OptionSet(
        "no-output-map-grouped-values",
        {"attn_project_out": False, "attn_value_dim_head": 6, "attn_kv_heads": 2, "attn_output_gate": True},
    ),
    OptionSet("one-head-without-map", {"heads": 1, "attn_dim_head": 24}),
    OptionSet("output-map-of-one-head", {"heads": 1, "attn_project_out": True, "attn_on_attn": True}),
    OptionSet(
        "dim-out", {"attn_dim_out": 24}, same=True, feature="Attention output width", part="projection/linear.outputs"
    ),
    OptionSet(
        "latent-q",
        {"attn_use_latent_q": True, "attn_dim_latent_q": 7},
        feature="Latent queries",
        part="projection/low_rank",
        paper="arXiv:2405.04434",
    ),
    OptionSet(
        "latent-kv",
        {"attn_use_latent_kv": True, "attn_dim_latent_kv": 7},
        feature="Latent keys and values (MLA)",
        part="key_values/latent",
        paper="arXiv:2405.04434",
    ),
    OptionSet("latent-kv-rotary", {**LATENT, "rotary_pos_emb": True}),
    OptionSet(
        "latent-rope-subheads",
        {**LATENT, "attn_latent_rope_subheads": 1, "rotary_pos_emb": True},
        feature="Decoupled rotary heads (MLA)",
        part="key_values/latent.own_heads",
        paper="arXiv:2405.04434",
    ),
    OptionSet("latent-rope-most-heads", {**LATENT, "attn_latent_rope_subheads": 3, "rotary_pos_emb": True}),
    OptionSet("latent-grouped-memory", {**LATENT, "attn_kv_heads": 2, "attn_num_mem_kv": 2}),
    OptionSet("latent-qk-rmsnorm", {**LATENT, "attn_qk_rmsnorm": True, "rotary_pos_emb": True}),
    OptionSet(
        "latent-norms-own-heads",
        {**LATENT, "attn_qk_norm": True, "attn_latent_rope_subheads": 2, "rotary_pos_emb": True},
    ),
    OptionSet(
        "latent-everything",
        {
            **{**LATENT, "attn_use_latent_q": True, "attn_dim_latent_q": 6, "attn_latent_rope_subheads": 2},
            **{"rotary_pos_emb": True, "attn_value_dim_head": 5, "attn_gate_values": True, "attn_flash": True},
            **{"ff_glu": True, "use_rmsnorm": True},
        },
    ),
    OptionSet("latent-window", {**LATENT, "attn_max_attend_past": 3, "rotary_pos_emb": True}),
    OptionSet("latent-forget-window", {**LATENT, "attn_data_dependent_alibi": True, "attn_max_attend_past": 3}),
    OptionSet("latent-cope", {**LATENT, "attn_use_cope": True, "attn_cope_max_pos": 5, "attn_kv_heads": 2}),
    OptionSet(
        "latent-selective", {**LATENT, "attn_selective": True, "attn_latent_rope_subheads": 1, "rotary_pos_emb": True}
    ),
    OptionSet(
        "latent-beside-recurrence",
        {**LATENT, "attn_hybrid_module": nn.GRU(24, 32, batch_first=True), "attn_hybrid_fold_axial_dim": 1},
    ),
    OptionSet("latent-alibi", {**LATENT, "alibi_pos_bias": True, "attn_kv_heads": 2}),
    OptionSet(
        "hybrid",
        HYBRID,
        feature="Recurrence beside attention (Hymba)",
        part="attention/hybrid",
        paper="arXiv:2411.13676",
    ),
    OptionSet(
        "hybrid-learned-mix",
        {**HYBRID, "attn_hybrid_learned_mix": True},
        feature="Learned mix of attention and recurrence",
        part="attention/hybrid.mix",
        paper="arXiv:2411.13676",
    ),
    OptionSet(
        "hybrid-folded",
        {**HYBRID, "attn_hybrid_fold_axial_dim": 3},
        feature="Recurrence over every n-th token",
        part="mixer/folded",
    ),
    OptionSet("hybrid-grouped-gated", {**HYBRID, "attn_kv_heads": 2, "attn_gate_values": True, "rotary_pos_emb": True}),
    OptionSet("hybrid-lstm", {**HYBRID, "attn_hybrid_module": nn.LSTM(24, 32, 2, batch_first=True)}),
    OptionSet("hybrid-rnn", {**HYBRID, "attn_hybrid_module": nn.RNN(24, 32, batch_first=True), "shift_tokens": 1}),
    OptionSet(
        "hybrid-gru-layers",
        {
            **HYBRID,
            "attn_hybrid_module": nn.GRU(24, 32, 3, bias=False, batch_first=True),
            "attn_hybrid_fold_axial_dim": 2,
        },
    ),
    OptionSet(
        "hybrid-both-ways",
        {**HYBRID, "attn_hybrid_module": nn.LSTM(24, 16, bidirectional=True, batch_first=True)},
        stack="Encoder",
    ),
    OptionSet(
        "hybrid-without-fold",
        {"attn_hybrid_module": nn.GRU(24, 32, batch_first=True)},
        wrong="upstream fails without hybrid_fold_axial_dim",
        incompatible="upstream has no norms of the two branches without hybrid_fold_axial_dim",
    ),
    OptionSet("qk-norm-groups-memory", {"attn_qk_norm": True, "attn_qk_norm_groups": 2, "attn_num_mem_kv": 2}),
]
