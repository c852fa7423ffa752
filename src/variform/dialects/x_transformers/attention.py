"""Keywords of upstream's attention (`attn_...`, `cross_attn_...`), routed to the mixers of the core."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from variform.core.spec import Shared, Spec
from variform.dialects.x_transformers.table import Route, Table, put, refused
from variform.errors import ConfigError, Problem, nearest_divisors
from variform.models.mixing import mixing_spec, with_dropout
from variform.parts.attention.memory import LearnedMemory
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.norms import RMSNorm
from variform.parts.stream_ops.padding import ZeroPadding

TINY = 1e-24
"""eps of an RMSNorm that is a plain l2 normalisation times sqrt(dim), as upstream's."""


@dataclass
class AttentionDraft:
    """One attention on its way to a spec."""

    dim: int
    heads: int
    causal: bool
    prefix: str
    dim_head: int = 64
    kv_heads: int | None = None
    one_kv_head: bool = False
    dropout: float = 0.0
    sublayer_dropout: float = 0.0
    dim_context: int | None = None
    max_attend_past: int | None = None
    project_out: bool | None = None
    num_mem_kv: int = 0
    qk_norm: bool = False
    qk_norm_scale: float = 10.0
    qk_norm_dim_scale: bool = False
    qk_rmsnorm: bool = False
    k_rmsnorm: bool = False
    flash: bool = False
    part: Any = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def key_heads(self) -> int:
        """How many key and value heads there are."""
        return 1 if self.one_kv_head else self.kv_heads or self.heads

    def check(self, cross: bool) -> list[Problem]:
        """The rules that concern several keywords."""
        at, found = self.prefix, self.problems
        if self.one_kv_head and self.kv_heads is not None:
            message = "one key head is what one_kv_head asks for; give one of the two"
            found.append(Problem(f"{at}kv_heads", message, self.kv_heads))
        elif isinstance(self.kv_heads, int) and (self.kv_heads < 1 or self.heads % self.kv_heads):
            hint = nearest_divisors(self.heads, max(1, self.kv_heads))
            found.append(Problem(f"{at}kv_heads", f"must divide heads = {self.heads}", self.kv_heads, hint))
        if self.heads == 1 and self.project_out is None:
            message = "with one head upstream leaves the output map out, which is not supported yet"
            found.append(Problem("heads", message, 1, f"give {at}project_out=True, which keeps the map"))
        if self.project_out is False:
            found.append(Problem(f"{at}project_out", "attention without an output map is not supported yet", False))
        if self.qk_rmsnorm + self.k_rmsnorm + self.qk_norm > 1:
            message = "only one norm of queries and keys can be on: qk_norm, qk_rmsnorm or k_rmsnorm"
            found.append(Problem(f"{at}qk_rmsnorm", message))
        if self.max_attend_past is not None and (cross or not self.causal):
            message = "a limit on the past is supported in causal self-attention alone"
            found.append(Problem(f"{at}max_attend_past", message, self.max_attend_past))
        if self.num_mem_kv < 0:
            found.append(Problem(f"{at}num_mem_kv", "must not be negative", self.num_mem_kv))
        elif self.num_mem_kv and (self.max_attend_past is not None or self.qk_norm_dim_scale):
            message = "not supported yet with max_attend_past and qk_norm_dim_scale"
            found.append(Problem(f"{at}num_mem_kv", message, self.num_mem_kv))
        found += self._part_problems(cross)
        if self.dim_context is not None and not cross:
            message = "self-attention has no context; it belongs to cross_attn_dim_context"
            found.append(Problem(f"{at}dim_context", message, self.dim_context))
        return found

    def _part_problems(self, cross: bool) -> list[Problem]:
        """What is wrong with an attention that is named as a part."""
        if self.part is None:
            return []
        at = f"{self.prefix}part"
        try:
            spec = mixing_spec(self.part)
        except ConfigError as error:
            return [problem.below(at) for problem in error.problems]
        if cross and spec.kind == "mixer":
            return [Problem(at, f"the mixer {spec.name!r} does not attend to another sequence", self.part)]
        softmax = {"max_attend_past": self.max_attend_past, "num_mem_kv": self.num_mem_kv, "qk_norm": self.qk_norm}
        return [
            Problem(f"{self.prefix}{name}", f"softmax attention alone has it, not {spec.name!r}", value)
            for name, value in softmax.items()
            if value and spec.name != "softmax"
        ]

    def body(self, rotation: Spec | None, bias: Spec | Shared | None) -> Spec:
        """Self-attention as a part; rows that the mask leaves out hold zeros, as upstream's."""
        if self.part is not None and mixing_spec(self.part).kind == "mixer":
            return ZeroPadding.spec(body=mixing_spec(self.part))
        mixer = MultiHead.spec(**self._common(), rotation=rotation, position_bias=bias)
        return ZeroPadding.spec(body=mixer)

    def cross_body(self) -> Spec:
        """Cross attention as a part."""
        return ZeroPadding.spec(body=CrossMultiHead.spec(**self._common(), dim_context=self.dim_context or self.dim))

    def _common(self) -> dict[str, Any]:
        q_norm, k_norm, scale = self._norms()
        softmax: dict[str, Any] = {"dropout": self.dropout, "scale": scale}
        if self.part is not None:
            attention = with_dropout(mixing_spec(self.part), self.dropout)
        elif self.max_attend_past is None:
            plain = RMSNorm.spec(eps=TINY, gain=False) if self.qk_norm else None
            memory = LearnedMemory.spec(count=self.num_mem_kv, std=1.0, norm=plain) if self.num_mem_kv else None
            attention = SoftmaxAttention.spec(**softmax, memory=memory)
        else:
            attention = LocalAttention.spec(window=self.max_attend_past + 1, **softmax)
        return {
            "dim_head": self.dim_head,
            "kv_heads": None if self.key_heads == self.heads else self.key_heads,
            "attention": attention,
            "q_norm": q_norm,
            "k_norm": k_norm,
        }

    def _norms(self) -> tuple[Spec | None, Spec | None, float | None]:
        """Norms of q and k, and the factor on their product.

        Upstream's l2 norms are RMS norms divided by sqrt(dim_head) each, so the factor is divided by dim_head.
        """
        heads = RMSNorm.spec(eps=TINY, per_head=self.heads)
        key_heads = RMSNorm.spec(eps=TINY, per_head=self.key_heads)
        if self.qk_norm and self.qk_norm_dim_scale:
            # Its gains start at dim_head^(1/4); here at one, and the difference is in the factor.
            return heads, key_heads, 1 / self.dim_head
        if self.qk_norm:
            plain = RMSNorm.spec(eps=TINY, gain=False)
            return plain, plain, self.qk_norm_scale / self.dim_head
        if self.qk_rmsnorm:
            return heads, key_heads, None
        return None, key_heads if self.k_rmsnorm else None, None


def score_scale(dim_head: int) -> float:
    """Upstream's factor on a relative bias: sqrt(dim_head)."""
    return math.sqrt(dim_head)


ATTENTION: Table = {
    "dim_head": Route(64, put("dim_head"), types=(int,)),
    "flash": Route(False, put("flash")),  # one function either way: the fastest kernel that computes it is chosen
    "dropout": Route(0.0, put("dropout")),
    "sublayer_dropout": Route(0.0, put("sublayer_dropout")),
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
    **refused(
        pre_talking_heads=False,
        post_talking_heads=False,
        pre_scale_post_talking_heads=False,
        head_scale=False,
        sparse_topk=None,
        sparse_topk_straight_through=False,
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
        hard=False,
        qk_norm_groups=1,
        value_rmsnorm=False,
        l2_distance=False,
        sigmoid=False,
        gumbel_softmax=False,
        gumbel_softmax_temp=1.0,
        gumbel_softmax_hard=True,
        selective=False,
        cog_signed=False,
        custom_attn_fn=None,
        hybrid_module=None,
        hybrid_mask_kwarg=None,
        hybrid_fold_axial_dim=None,
        hybrid_learned_mix=False,
        value_dim_head=None,
        dim_out=None,
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
        orthog_projected_values=False,
        orthog_projected_values_per_head=False,
        laser=False,
        laser_softclamp_value=15.0,
        use_latent_q=False,
        dim_latent_q=None,
        use_latent_kv=False,
        dim_latent_kv=None,
        latent_rope_subheads=None,
        onnxable=False,
        inverted_attention=False,
        attend_sdp_kwargs={"enable_flash": True, "enable_math": True, "enable_mem_efficient": True},
        flash_pack_seq=False,
    ),
}
"""Keyword (without `attn_`) -> what it does to an `AttentionDraft`."""
