"""Keywords of what surrounds the heads: norms, gates, values, projections, latent and hybrid attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from variform.core.spec import Spec
from variform.dialects.x_transformers.table import Table, refused
from variform.errors import Problem

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention.draft import AttentionDraft

ROUTES: Table = {
    **refused(
        head_scale=False,
        on_attn=False,
        gate_value_heads=False,
        swiglu_values=False,
        gate_values=False,
        gate_values_rank=None,
        gate_values_headwise=False,
        output_gate=False,
        output_gate_rank=None,
        output_gate_headwise=False,
        low_rank_silu_gates=True,
        zero_init_output=False,
        output_proj_depth=None,
        qk_norm_groups=1,
        value_rmsnorm=False,
        l2_distance=False,
        hybrid_module=None,
        hybrid_mask_kwarg=None,
        hybrid_fold_axial_dim=None,
        hybrid_learned_mix=False,
        value_dim_head=None,
        dim_out=None,
        orthog_projected_values=False,
        orthog_projected_values_per_head=False,
        laser=False,
        laser_softclamp_value=15.0,
        use_latent_q=False,
        dim_latent_q=None,
        use_latent_kv=False,
        dim_latent_kv=None,
        latent_rope_subheads=None,
    ),
}
"""Keyword (without `attn_`) -> what it does to an `AttentionDraft`."""


def check(draft: AttentionDraft, cross: bool) -> list[Problem]:
    """The rules that concern several keywords."""
    return []


def attention(draft: AttentionDraft, spec: Spec) -> Spec:
    """The head-level attention with what the keywords put around it or into its slots."""
    return spec


def mixer(draft: AttentionDraft, spec: Spec) -> Spec:
    """The mixer with what the keywords put around it or in its place."""
    return spec
