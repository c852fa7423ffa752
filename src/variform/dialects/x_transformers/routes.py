"""The routing table of `AttentionLayers`: what each of its keywords does to a `LayersDraft`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from variform.core.spec import Spec
from variform.dialects.x_transformers import positions, residuals
from variform.dialects.x_transformers.attention.table import ATTENTION
from variform.dialects.x_transformers.eps import TINY
from variform.dialects.x_transformers.feedforward import FEEDFORWARD
from variform.dialects.x_transformers.history import HISTORY
from variform.dialects.x_transformers.table import REQUIRED, Route, Table, kept, put
from variform.parts.norm.adaptive import AdaptiveNorm
from variform.parts.norm.norms import LayerNorm, RMSNorm, ScaleNorm
from variform.parts.norm.pointwise import Derf, DynamicTanh

PREFIXES: dict[str, Table] = {"cross_attn_": ATTENTION, "attn_": ATTENTION, "ff_": FEEDFORWARD}
"""Tables of the parts of a stack, by what their keywords begin with."""


def _norm(spec: Spec) -> Callable[[Any, Any], None]:
    def apply(draft: Any, value: Any) -> None:
        if value:
            draft.norms.append(spec)

    return apply


LAYERS: Table = {
    "dim": Route(REQUIRED, put("dim"), types=(int,)),
    "depth": Route(None, put("depth"), types=(int,)),
    "heads": Route(8, put("heads"), types=(int,)),
    "causal": Route(False, put("causal")),
    "cross_attend": Route(False, put("cross_attend")),
    "only_cross": Route(False, put("only_cross"), needs="cross_attend"),
    "only_attn": Route(False, put("only_attn")),
    "use_scalenorm": Route(False, _norm(ScaleNorm.spec(eps=1e-12))),
    "use_rmsnorm": Route(False, _norm(RMSNorm.spec(eps=TINY))),
    "use_dynamic_tanh": Route(False, _norm(DynamicTanh.spec())),
    "use_derf": Route(False, _norm(Derf.spec())),
    "dynamic_tanh_init_alpha": Route(1.0, put("dynamic_tanh_init_alpha"), needs="use_dynamic_tanh", types=(int, float)),
    "use_adaptive_layernorm": Route(False, _norm(AdaptiveNorm.spec(norm=LayerNorm.spec(gain=False, bias=False)))),
    "use_adaptive_rmsnorm": Route(False, _norm(AdaptiveNorm.spec(norm=RMSNorm.spec(eps=TINY, gain=False)))),
    "dim_condition": Route(None, put("dim_condition"), types=(int,)),
    "adaptive_condition_mlp": Route(False, put("adaptive_condition_mlp")),
    "adaptive_condition_mlp_expansion": Route(
        4, put("adaptive_condition_mlp_expansion"), needs="adaptive_condition_mlp", types=(int,)
    ),
    "use_simple_rmsnorm": Route(False, _norm(RMSNorm.spec(eps=TINY, gain=False))),
    "norm_add_unit_offset": Route(True, put("norm_add_unit_offset")),  # how checkpoints store gains, not what they do
    **positions.ROUTES,
    "weight_tie_layers": Route(False, put("weight_tie_layers")),
    "custom_layers": Route(None, put("custom_layers"), types=(tuple, list)),
    "layers_execute_order": Route(None, put("layers_execute_order"), types=(tuple, list)),
    "sandwich_coef": Route(None, put("sandwich_coef"), types=(int,)),
    "par_ratio": Route(None, put("par_ratio"), types=(int,)),
    "macaron": Route(False, put("macaron")),
    "pre_norm": Route(True, put("pre_norm")),
    "pre_norm_has_final_norm": Route(True, put("pre_norm_has_final_norm")),
    "pre_and_post_norm": Route(False, put("pre_and_post_norm")),
    "sandwich_norm": Route(False, put("sandwich_norm")),
    **residuals.ROUTES,
    **HISTORY,
    "layer_dropout": Route(0.0, put("layer_dropout"), types=(int, float, tuple)),
    "disable_abs_pos_emb": Route(None, put("disable_abs_pos_emb"), types=(bool,)),
    "verbose": Route(True, kept),  # upstream's log messages; there are none here
}
"""Keyword -> what it does to a `LayersDraft`."""

KNOWN: dict[str, Route] = {
    **LAYERS,
    **{prefix + name: route for prefix, table in PREFIXES.items() for name, route in table.items()},
}
"""Every keyword of `AttentionLayers`, prefixes included."""
