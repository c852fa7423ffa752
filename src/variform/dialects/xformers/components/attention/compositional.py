"""Compositional attention, which owns its heads and projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.spec import Spec
from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes, read_att_mask
from variform.dialects.xformers.components.attention.mixing import NativeMixer
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.dialects.xformers.components.input_projection import InputProjection
from variform.dialects.xformers.errors import CallError, Wrong, config_error
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Sides
from variform.parts.mixer.compositional import Compositional

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclass
class CompositionalAttentionConfig(AttentionConfig):
    """The configuration of `CompositionalAttention`."""

    dim_model: int | None = None
    num_heads: int | None = None
    dim_attn: int | None = None
    num_rules: int | None = None
    dim_key: int | None = None
    dim_value: int | None = None
    dim_selection: int | None = None
    qk_rule: bool | None = None
    nonlinear: bool | None = None
    q_compose: bool | None = None
    bias: bool | None = None
    causal: bool | None = None
    in_proj_container: InputProjection | None = None
    use_separate_proj_weight: bool | None = None


@register_attention("compositional", CompositionalAttentionConfig)
class CompositionalAttention(NativeMixer):
    """Compositional attention (Mittal et al. 2021, arXiv:2110.09419): searches by heads, retrievals by rules.

    A head chooses between the rules by a score of its query and each retrieval: with `qk_rule` their scaled product,
    as in the paper; with `nonlinear` a network of one inner layer; else a linear function, with weights of the query
    for each rule, because by equal weights the query would cancel in the softmax over the rules.

    Shapes:
        q: [B, Sq, dim_model], k, v: [B, Sk, dim_model] -> [B, Sq, dim_model]

    Args:
        dim_model: features in and out.
        num_heads: number of searches.
        dim_attn: features of all heads' queries and keys; `dim_model` by default.
        num_rules: number of retrievals; `num_heads` by default.
        dim_selection: features of a head's query for the choice; `dim_model // num_heads` by default.
        dim_key: another name of `dim_attn`.
        dim_value: features of all rules' values; `dim_model` by default.
        dropout: probability of dropping an attention weight, in training.
        qk_rule: score by a scaled product.
        nonlinear: score by a network.
        q_compose: read the query for the choice off the head's own query, not off the token.
        in_proj_container: the projections, in place of new ones.
        use_separate_proj_weight: own maps for keys and values, as in the paper; False takes the queries' map for
            keys, and for values where their size is the same.
        bias: learn offsets.
        causal: only the past.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "compositional"

    native: Compositional

    def __init__(
        self,
        dim_model: Size,
        num_heads: Size,
        dim_attn: Size | None = None,
        num_rules: Size | None = None,
        dim_selection: Size | None = None,
        dim_key: Size | None = None,
        dim_value: Size | None = None,
        dropout: Rate = 0.0,
        qk_rule: bool = False,
        nonlinear: bool = False,
        q_compose: bool = False,
        in_proj_container: InputProjection | None = None,
        use_separate_proj_weight: bool = False,
        bias: bool = True,
        causal: bool = False,
        **superset: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "superset", "__class__")}
        verify(CompositionalAttention, **given)
        _refuse_contradictions(given)
        super().__init__(
            Compositional.spec(
                dim=dim_model,
                heads=num_heads,
                rules=num_rules,
                dim_attn=dim_attn or dim_key,
                dim_value=dim_value,
                dim_selection=dim_selection,
                score="dot" if qk_rule else "mlp" if nonlinear else "linear",
                q_compose=q_compose,
                bias=bias,
                tied=not use_separate_proj_weight,
                attention=SoftmaxAttention.spec(causal=causal, dropout=dropout),
            )
        )
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "compositional")
        self.causal = causal
        self.requires_same_k_q_dimensions = False
        self.in_proj_container = in_proj_container
        if in_proj_container is not None:
            for name in ("q", "k", "v"):
                setattr(self.native.maps, name, None)

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        att_mask: AttMask | None,
        padding: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Attend, also to another sequence."""
        maps = self.native.maps
        sizes = Sizes(query.shape[0], maps.heads, query.shape[1], key.shape[1])
        if sizes.queries != sizes.keys and self.causal:
            lengths = f"{sizes.queries} queries and {sizes.keys} keys"
            raise CallError(f"causality between sequences of different lengths is not defined: {lengths}")
        allowed, scores = read_att_mask(att_mask, sizes)
        own = padding if sizes.queries == sizes.keys else None
        sides = Sides(
            q_positions=positions, k_positions=positions, q_valid=own, k_valid=padding, mask=allowed, scores=scores
        )
        if self.in_proj_container is None:
            q, (k, v) = maps.q(query), maps.keys_values(key, value)
        else:
            q, k, v = self.in_proj_container(query, key, value)
            self._check(q, k, v)
        q, k, v = maps.by_head(q, k, v)
        found = self.native.attention(q, k, v, sides)
        assert isinstance(found, Tensor)
        return maps.chosen(query, q, found)

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        maps = self.native.maps
        keys, values = maps.heads * maps.dim_head, maps.rules * maps.dim_value
        if (q.shape[-1], k.shape[-1], v.shape[-1]) != (keys, keys, values):
            raise CallError(
                f"in_proj_container must make {keys} features of queries and keys and {values} of values "
                f"({maps.rules} rules of {maps.dim_value}), and makes {[t.shape[-1] for t in (q, k, v)]}"
            )

    @property
    def spec(self) -> Spec:
        """The native mixer.

        Raises:
            ConfigError: it has projections of another module.
        """
        if self.in_proj_container is not None:
            message = "projections of its own have no native equivalent"
            raise config_error([Wrong("in_proj_container", message)])
        return self.native.spec


def _refuse_contradictions(given: dict[str, Any]) -> None:
    problems = []
    if given["dim_key"] and given["dim_attn"] and given["dim_key"] != given["dim_attn"]:
        message = f"is another name of dim_attn = {given['dim_attn']}"
        problems.append(Wrong("dim_key", message, given["dim_key"], "give one of them"))
    if given["qk_rule"] and given["nonlinear"]:
        message = "is about the score that qk_rule replaces by a product"
        problems.append(Wrong("nonlinear", message, True, "give one of them"))
    if given["in_proj_container"] is not None and given["use_separate_proj_weight"]:
        message = "is about projections that in_proj_container replaces"
        problems.append(Wrong("use_separate_proj_weight", message, True, "leave it out"))
    if problems:
        raise config_error(problems)
