"""The module types: their keys with types and defaults, and the step that each one is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from variform.core.spec import Spec
from variform.errors import Problem, did_you_mean
from variform.parts.norm.clamped import ClampedRMSNorm
from variform.parts.norm.norms import LayerNorm
from variform.parts.op.heads import Offset, Scores, SplitHeads, WeightedSum
from variform.parts.op.rotary import Rotary
from variform.parts.op.tokenwise import ActivationOp, CopyOp, EmbeddingOp, LinearOp, MergeOp
from variform.stack.lines import Step

REQUIRED = object()
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """One key of a module's dict.

    Args:
        default: its value when left out, or `REQUIRED`.
        types: what it may be; bools are no integers.
        choices: what a string may be (case does not matter); any when empty.
        smallest: the smallest number allowed.
    """

    default: Any = None
    types: tuple[type, ...] = (str,)
    choices: tuple[str, ...] = ()
    smallest: int | None = None

    def problem(self, value: Any) -> tuple[str, str] | None:
        """What is wrong with a value, and a hint; None when nothing is."""
        wanted = " or ".join(t.__name__ for t in self.types)
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            return f"must be {wanted}", ""
        if isinstance(value, (list, tuple)) and not value:
            return "needs at least one item", ""
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if self.choices and (not isinstance(item, str) or item.lower() not in self.choices):
                return f"must be one of {', '.join(self.choices)}", did_you_mean(str(item), self.choices)
        if self.smallest is not None and isinstance(value, int) and value < self.smallest:
            return f"must be at least {self.smallest}", ""
        return None


@dataclass(frozen=True)
class ModuleType:
    """A module type.

    Args:
        keys: what its dict may hold beside `type`.
        step: the step it is: op, names read, names written.
        aliases: other spellings of keys.
        fields: which key stands behind a field of the op, for messages.
    """

    keys: Mapping[str, Key]
    step: Callable[[Settings], tuple[Spec, tuple[str, ...], tuple[str, ...]]]
    aliases: Mapping[str, str]
    fields: Mapping[str, str]


_NORMS = ("layer_norm", "rms_norm", "scale_norm")
_ACTIVATIONS = ("none", "gelu", "relu", "sigmoid", "tanh")
_MERGES = {"add": "add", "mult": "multiply", "multiply": "multiply", "subtract": "subtract", "cat": "cat"}
_X = {"input_name": Key("x"), "output_name": Key("x")}
_NORM = Key(None, (str,), _NORMS)
_SIZE = Key(REQUIRED, (int,), smallest=1)


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


def _embedding(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    return EmbeddingOp.spec(classes=s["num_classes"], out=s["output_dim"]), (s["input_name"],), (s["output_name"],)


def _linear(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    start = s["init_bias"]
    op = LinearOp.spec(
        out=s["output_dim"],
        bias_init=None if start is None else float(start),
        norm=norm_spec(s["input_norm"]),
        out_norm=norm_spec(s["output_norm"]),
    )
    return op, (s["input_name"],), (s["output_name"],)


def _activation(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    given = s["activation_function"]
    names = [given] if isinstance(given, str) else given
    norms = {"norm": norm_spec(s["input_norm"]), "out_norm": norm_spec(s["output_norm"])}
    op = ActivationOp.spec(functions=[name.lower() for name in names], **norms)
    return op, (s["input_name"],), (s["output_name"],)


def _norm(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    op = norm_spec(s["norm_type"])
    assert op is not None
    return op, (s["input_name"],), (s["output_name"],)


def _make_stream(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    return CopyOp.spec(), (s["input_name"],), (s["output_name"],)


def _merge_streams(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    how = _MERGES[s["merge_type"].lower()]
    return MergeOp.spec(how=how), (s["input_name_1"], s["input_name_2"]), (s["output_name"],)


def _make_heads(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    return SplitHeads.spec(heads=s["num_heads"]), (s["input_name"],), (s["output_name"],)


def _rope(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    op = Rotary.spec(features=s["rotate_dim"], max_len=s["max_length"])
    return op, (s["input_name"],), (s["output_name"],)


def _mha_dots(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    return Scores.spec(), (s["input_name_queries"], s["input_name_keys"]), (s["output_name"],)


def _attention_offset(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    reads = (s["input_name_attn_dots"], s["input_name_attn_offset"])
    return Offset.spec(scaled=s["scaled"]), reads, (s["output_name"],)


def _mha_sum(s: Settings) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    scores = s["output_name_attention_scores"]
    op = WeightedSum.spec(
        function=s["attn_function"].lower(),
        norm=norm_spec(s["norm_value_heads"]),
        weights=isinstance(scores, str),
        causal=False,
    )
    into = (s["output_name"], scores) if isinstance(scores, str) else (s["output_name"],)
    return op, (s["input_name_values"], s["input_name_dots"]), into


def _type(
    keys: Mapping[str, Key],
    step: Callable[[Settings], tuple[Spec, tuple[str, ...], tuple[str, ...]]],
    aliases: Mapping[str, str] | None = None,
    **fields: str,
) -> ModuleType:
    return ModuleType(keys, step, aliases or {}, fields)


TYPES: dict[str, ModuleType] = {
    "embedding": _type(
        {"input_name": Key("emb_ids"), "output_name": Key("x"), "num_classes": _SIZE, "output_dim": _SIZE}, _embedding
    ),
    "linear": _type(
        {
            **_X,
            "output_dim": Key(None, (int,), smallest=1),
            "init_bias": Key(None, (int, float)),
            "input_norm": _NORM,
            "output_norm": _NORM,
        },
        _linear,
        out="output_dim",
    ),
    "activation": _type(
        {
            **_X,
            "activation_function": Key("gelu", (str, list, tuple), _ACTIVATIONS),
            "input_norm": _NORM,
            "output_norm": _NORM,
        },
        _activation,
        functions="activation_function",
    ),
    "norm": _type({**_X, "norm_type": Key("layer_norm", (str,), _NORMS)}, _norm),
    "make_stream": _type({"input_name": Key("x"), "output_name": Key(REQUIRED)}, _make_stream),
    "merge_streams": _type(
        {
            "input_name_1": Key("x"),
            "input_name_2": Key("x"),
            "output_name": Key("x"),
            "merge_type": Key("add", (str,), tuple(_MERGES)),
        },
        _merge_streams,
    ),
    "make_heads": _type({**_X, "num_heads": Key(1, (int,), smallest=1)}, _make_heads, heads="num_heads"),
    "rope": _type(
        {**_X, "rotate_dim": _SIZE, "max_length": Key(2048, (int,), smallest=1)},
        _rope,
        features="rotate_dim",
        max_len="max_length",
    ),
    "mha_dots": _type(
        {"input_name_queries": Key("x"), "input_name_keys": Key("x"), "output_name": Key("attn_dots")}, _mha_dots
    ),
    "attention_offset": _type(
        {
            "input_name_attn_dots": Key("attn_dots"),
            "input_name_attn_offset": Key("attn_offset"),
            "output_name": Key("attn_dots"),
            "scaled": Key(False, (bool,)),
        },
        _attention_offset,
    ),
    "mha_sum": _type(
        {
            "input_name_values": Key("x"),
            "input_name_dots": Key("attn_dots"),
            "output_name": Key("x"),
            "attn_function": Key("softmax", (str,), ("softmax", "relu", "tanh")),
            "norm_value_heads": _NORM,
            "output_name_attention_scores": Key(False, (str, bool)),
        },
        _mha_sum,
        {"input_name_attn_dots": "input_name_dots", "output_name_attn_scores": "output_name_attention_scores"},
    ),
}
"""All module types by name."""


def step_of(config: Any) -> tuple[Spec, list[Problem]]:
    """The step that a module's dict describes, and what is wrong with the dict (paths are its keys).

    A dict with problems gives a step without an op, so that what follows it can still be looked at.
    """
    if not isinstance(config, Mapping):
        return Step.spec(), [Problem("", "a module is a dict: {'type': ..., ...}", config)]
    name = config.get("type")
    if not isinstance(name, str):
        problem = Problem("type", f"a module needs a type, and has {name!r}", hint="known: " + ", ".join(TYPES))
        return _unknown(config), [problem]
    if name.lower() not in TYPES:
        return _unknown(config), [Problem("type", "there is no such module type", name, did_you_mean(name, TYPES))]
    kind = TYPES[name.lower()]
    settings, problems = _settings(config, kind, name)
    if problems:
        return _unknown(config), problems
    op, reads, into = kind.step(settings)
    return Step.spec(op=op, reads=reads, into=into, label=name), []


def _settings(config: Mapping[Any, Any], kind: ModuleType, name: str) -> tuple[dict[str, Any], list[Problem]]:
    settings: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in config.items():
        known = kind.aliases.get(key, key)
        if key == "type":
            continue
        if known not in kind.keys:
            problems.append(Problem(str(key), f"{name} has no such key", hint=did_you_mean(str(key), kind.keys)))
        elif known in settings:
            problems.append(Problem(str(key), f"{name} has this key twice, the other time as {known!r}"))
        elif value is None and kind.keys[known].default is None:
            settings[known] = None
        elif wrong := kind.keys[known].problem(value):
            problems.append(Problem(str(key), f"{name}: {wrong[0]}", value, wrong[1]))
        else:
            settings[known] = value
    for key, entry in kind.keys.items():
        if entry.default is REQUIRED and key not in config:
            problems.append(Problem(key, f"{name} needs this key"))
        settings.setdefault(key, entry.default)
    return settings, problems


def _unknown(config: Mapping[Any, Any]) -> Spec:
    into = config.get("output_name", "x")
    return Step.spec(into=(into if isinstance(into, str) else "x",), label=str(config.get("type", "")))
