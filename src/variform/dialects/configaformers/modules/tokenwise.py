"""Module types that work on each token on its own."""

from __future__ import annotations

from variform.core.spec import Spec
from variform.dialects.configaformers.modules.keys import SIZE, Key, ModuleType, Parsed, Settings, X, one_to_one
from variform.parts.norm.clamped import ClampedRMSNorm
from variform.parts.norm.norms import LayerNorm
from variform.parts.op.scale import DropoutOp, ScaleOp
from variform.parts.op.tokenwise import ActivationOp, EmbeddingOp, LinearOp

_NORMS = ("layer_norm", "rms_norm", "scale_norm")
_ACTIVATIONS = ("none", "gelu", "relu", "sigmoid", "tanh")
NORM = Key(None, (str,), _NORMS)


def norm_spec(name: str | None) -> Spec | None:
    """A norm by its name here."""
    match name and name.lower():
        case "layer_norm":
            return LayerNorm.spec()
        case "rms_norm":
            return ClampedRMSNorm.spec()
        case "scale_norm":
            return ClampedRMSNorm.spec(per_feature=False, eps=1e-5)
    return None


def _embedding(s: Settings) -> Parsed:
    return one_to_one(s, EmbeddingOp.spec(classes=s["num_classes"], out=s["output_dim"]))


def _linear(s: Settings) -> Parsed:
    start = s["init_bias"]
    op = LinearOp.spec(
        out=s["output_dim"],
        bias_init=None if start is None else float(start),
        norm=norm_spec(s["input_norm"]),
        out_norm=norm_spec(s["output_norm"]),
    )
    return one_to_one(s, op)


def _activation(s: Settings) -> Parsed:
    given = s["activation_function"]
    names = [given] if isinstance(given, str) else given
    norms = {"norm": norm_spec(s["input_norm"]), "out_norm": norm_spec(s["output_norm"])}
    return one_to_one(s, ActivationOp.spec(functions=[name.lower() for name in names], **norms))


def _norm(s: Settings) -> Parsed:
    op = norm_spec(s["norm_type"])
    assert op is not None
    return one_to_one(s, op)


def _scale_dim(s: Settings) -> Parsed:
    return one_to_one(s, ScaleOp.spec(axis=s["dim_to_scale"]))


def _gate(s: Settings) -> Parsed:
    # The original reads the kind of gate from the key `type`, which is "gate" there: no config passes its check.
    return one_to_one(s, ScaleOp.spec(axis=-3 if s["gate_type"].lower() == "heads" else -1))


def _dropout(s: Settings) -> Parsed:
    return one_to_one(s, DropoutOp.spec(p=float(s["prob"])))


TOKENWISE: dict[str, ModuleType] = {
    "embedding": ModuleType(
        {"input_name": Key("emb_ids"), "output_name": Key("x"), "num_classes": SIZE, "output_dim": SIZE},
        _embedding,
        fields={"classes": "num_classes", "out": "output_dim"},
    ),
    "linear": ModuleType(
        {
            **X,
            "output_dim": Key(None, (int,), smallest=1),
            "init_bias": Key(None, (int, float)),
            "input_norm": NORM,
            "output_norm": NORM,
        },
        _linear,
        fields={"out": "output_dim", "bias_init": "init_bias", "norm": "input_norm", "out_norm": "output_norm"},
    ),
    "activation": ModuleType(
        {
            **X,
            "activation_function": Key("gelu", (str, list, tuple), _ACTIVATIONS),
            "input_norm": NORM,
            "output_norm": NORM,
        },
        _activation,
        fields={"functions": "activation_function", "norm": "input_norm", "out_norm": "output_norm"},
    ),
    "norm": ModuleType({**X, "norm_type": Key("layer_norm", (str,), _NORMS)}, _norm),
    "scale_dim": ModuleType({**X, "dim_to_scale": Key(2, (int,))}, _scale_dim, fields={"axis": "dim_to_scale"}),
    "gate": ModuleType(
        {**X, "gate_type": Key("features", (str,), ("features", "heads"))}, _gate, fields={"axis": "gate_type"}
    ),
    "dropout": ModuleType(
        {**X, "prob": Key(SIZE.default, (int, float), smallest=0, below=1)}, _dropout, fields={"p": "prob"}
    ),
}
