"""Keywords of upstream's feedforward (`ff_...`), routed to the MLP and GLU of the core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from variform.core.spec import Spec
from variform.dialects.x_transformers.table import Route, Table, put, refused
from variform.errors import Problem
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.norm.norms import LayerNorm


@dataclass
class FeedForwardDraft:
    """One feedforward on its way to a spec."""

    mult: float = 4
    glu: bool = False
    swish: bool = False
    relu_squared: bool = False
    no_bias: bool = False
    dropout: float = 0.0
    sublayer_dropout: float = 0.0
    post_act_ln: bool = False

    def check(self) -> list[Problem]:
        """The rules that concern several keywords."""
        if self.swish and self.relu_squared:
            return [Problem("ff_swish", "one activation is needed: ff_swish or ff_relu_squared, not both")]
        return []

    def body(self) -> Spec:
        """The feedforward as a part. Upstream keeps the offsets of a gated input map when `ff_no_bias` is on."""
        common: dict[str, Any] = {
            "mult": float(self.mult),
            "activation": "relu_squared" if self.relu_squared else "silu" if self.swish else "gelu",
            "dropout": self.dropout,
            "norm": LayerNorm.spec(bias=False) if self.post_act_ln else None,
        }
        if self.glu:
            return GLU.spec(**common, bias=True, out_bias=not self.no_bias)
        return MLP.spec(**common, bias=not self.no_bias)


FEEDFORWARD: Table = {
    "mult": Route(4, put("mult"), types=(int, float)),
    "glu": Route(False, put("glu")),
    "swish": Route(False, put("swish")),
    "relu_squared": Route(False, put("relu_squared")),
    "no_bias": Route(False, put("no_bias")),
    "dropout": Route(0.0, put("dropout")),
    "sublayer_dropout": Route(0.0, put("sublayer_dropout")),
    "post_act_ln": Route(False, put("post_act_ln")),
    **refused(
        dim_out=None,
        glu_mult_bias=False,
        solu=False,
        custom_activation=None,
        zero_init_output=False,
        output_proj_depth=None,
        softclamp_value=None,
        glu_softclamp=False,
        glu_gate_softclamp_value=4.0,
        glu_up_softclamp_value=25.0,
    ),
}
"""Keyword (without `ff_`) -> what it does to a `FeedForwardDraft`."""
