"""Feedforwards: every `ff_` keyword alone, and combinations."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.parity.x_transformers.option_set import OptionSet

NEW = ("2.31.10",)
GLU_PAPER = "arXiv:2002.05202"


def _set(name: str, feature: str = "", part: str = "", paper: str = "", **layers: Any) -> OptionSet:
    more = {key: layers.pop(key) for key in ("versions", "same", "wrong", "incompatible") if key in layers}
    return OptionSet(f"ff-{name}", layers=layers, feature=feature, part=part, paper=paper, **more)


SETS = [
    _set("mult", "Feedforward width", "feedforward/mlp.mult", "arXiv:1706.03762", ff_mult=2.5),
    _set("mult-by-layer", "Feedforward width by layer", "feedforward/mlp.mult", ff_mult=(2, 3)),
    _set("dim-out", "Feedforward output width", "feedforward/mlp.dim_out", ff_dim_out=24, same=True),
    _set("glu", "Gated feedforward (GLU)", "feedforward/glu", GLU_PAPER, ff_glu=True),
    _set("glu-mult-bias", "Learned factor in a GLU", "gate/branches.gain", "", ff_glu=True, ff_glu_mult_bias=True),
    _set("swish", "SiLU activation", "feedforward/mlp.activation", "arXiv:1606.08415", ff_swish=True),
    _set("swiglu", "SwiGLU", "feedforward/glu.activation", GLU_PAPER, ff_glu=True, ff_swish=True),
    _set("relu-squared", "Squared ReLU", "feedforward/mlp.activation", "arXiv:2109.08668", ff_relu_squared=True),
    _set("relu-squared-glu", ff_relu_squared=True, ff_glu=True),
    _set("solu", "SoLU", "nonlinearity/solu", "https://transformer-circuits.pub/2022/solu", ff_solu=True),
    _set("solu-glu", ff_solu=True, ff_glu=True),
    _set("solu-norm-clamp", ff_solu=True, ff_softclamp_value=0.5, ff_post_act_ln=True),
    _set("custom-activation", "Module as activation", "nonlinearity/user_module", ff_custom_activation=nn.PReLU()),
    _set("custom-known", ff_custom_activation=nn.ReLU()),
    _set("custom-glu", ff_custom_activation=nn.Softplus(beta=2.0), ff_glu=True),
    _set(
        "norm", "Norm of inner features (NormFormer)", "feedforward/mlp.norm", "arXiv:2110.09456", ff_post_act_ln=True
    ),
    _set("norm-glu-mult-bias", ff_post_act_ln=True, ff_glu=True, ff_glu_mult_bias=True, ff_swish=True),
    _set("dropout", "Dropout of inner features", "feedforward/mlp.dropout", ff_dropout=0.1, same=True),
    _set(
        "sublayer-dropout",
        "Dropout of feedforward branches",
        "layer/sublayer.dropout",
        ff_sublayer_dropout=0.1,
        same=True,
    ),
    _set("no-bias", "Feedforward without biases", "feedforward/mlp.bias", "arXiv:2212.14034", ff_no_bias=True),
    _set("no-bias-glu", ff_no_bias=True, ff_glu=True),
    _set(
        "zero-init-output",
        "Zero-initialised feedforward output",
        "layer/branch_start",
        "arXiv:1901.09321",
        ff_zero_init_output=True,
        same=True,
    ),
    _set(
        "output-proj-depth",
        "Feedforward output scaled by depth",
        "layer/branch_start.scale",
        "",
        ff_output_proj_depth=3,
        versions=NEW,
        incompatible="a stack passes the keyword on twice and fails",
    ),
    _set("softclamp", "Bounded inner features", "nonlinearity/soft_clamp", "arXiv:2408.00118", ff_softclamp_value=0.5),
    _set("softclamp-relu-squared", ff_softclamp_value=0.5, ff_relu_squared=True),
    _set(
        "glu-softclamp",
        "Bounded branches of a GLU",
        "gate/branches",
        "",
        ff_glu=True,
        ff_glu_softclamp=True,
        ff_glu_gate_softclamp_value=0.7,
        ff_glu_up_softclamp_value=0.5,
        versions=NEW,
    ),
    _set(
        "glu-softclamp-swish",
        ff_glu=True,
        ff_swish=True,
        ff_glu_softclamp=True,
        ff_glu_gate_softclamp_value=0.5,
        versions=NEW,
    ),
    _set(
        "glu-softclamp-old",
        "Bounded branches of a GLU (2.26)",
        "gate/branches",
        "",
        ff_glu=True,
        ff_softclamp_value=0.5,
        ff_glu_gate_softclamp_value=0.7,
        versions=("2.26.4",),
    ),
    _set(
        "gated-macaron-grouped",
        ff_glu=True,
        ff_swish=True,
        ff_glu_mult_bias=True,
        macaron=True,
        attn_kv_heads=2,
        rotary_pos_emb=True,
        use_rmsnorm=True,
    ),
]
