"""Keywords of what is done to scores and weights: score features, normalisers, biases that depend on the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from variform.core.spec import Spec
from variform.dialects.x_transformers.table import Table, refused
from variform.errors import Problem

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention.draft import AttentionDraft

ROUTES: Table = {
    **refused(
        pre_talking_heads=False,
        post_talking_heads=False,
        pre_scale_post_talking_heads=False,
        sparse_topk=None,
        sparse_topk_straight_through=False,
        hard=False,
        sigmoid=False,
        gumbel_softmax=False,
        gumbel_softmax_temp=1.0,
        gumbel_softmax_hard=True,
        selective=False,
        cog_signed=False,
        custom_attn_fn=None,
        add_zero_kv=False,
        head_learned_sink=False,
        data_dependent_alibi=False,
        data_dependent_alibi_per_row=False,
        data_dependent_alibi_per_row_dim_head=8,
        data_dependent_alibi_kwargs={},
        use_rel_proj_pos_bias=False,
        rel_proj_num_distance_basis=16,
        rel_proj_max_dist=1024,
        use_cope=False,
        cope_max_pos=16,
        cope_soft_onehot_pos=False,
        cope_talking_heads=False,
        softclamp_logits=False,
        logit_softclamp_value=50.0,
        onnxable=False,
        inverted_attention=False,
        attend_sdp_kwargs={"enable_flash": True, "enable_math": True, "enable_mem_efficient": True},
        flash_pack_seq=False,
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
