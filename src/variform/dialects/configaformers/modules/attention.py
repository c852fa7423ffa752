"""Module types of multi-head attention."""

from __future__ import annotations

from variform.dialects.configaformers.modules.keys import SIZE, Key, ModuleType, Parsed, Settings, X, one_to_one
from variform.dialects.configaformers.modules.tokenwise import NORM, norm_spec
from variform.errors import Problem
from variform.parts.op.heads import MergeHeads, Offset, Scores, SplitHeads, WeightedSum
from variform.parts.op.rotary import Rotary


def _make_heads(s: Settings) -> Parsed:
    return one_to_one(s, SplitHeads.spec(heads=s["num_heads"]))


def _merge_heads(s: Settings) -> Parsed:
    return one_to_one(s, MergeHeads.spec())


def _rope(s: Settings) -> Parsed:
    return one_to_one(s, Rotary.spec(features=s["rotate_dim"], max_len=s["max_length"]))


def _mha_dots(s: Settings) -> Parsed:
    return Scores.spec(), (s["input_name_queries"], s["input_name_keys"]), (s["output_name"],)


def _attention_offset(s: Settings) -> Parsed:
    reads = (s["input_name_attn_dots"], s["input_name_attn_offset"])
    return Offset.spec(scaled=s["scaled"]), reads, (s["output_name"],)


def _attention_bias(s: Settings) -> Parsed:
    return Offset.spec(), (s["input_name_attn_dots"], s["input_name_attn_bias"]), (s["output_name"],)


def _mha_sum(s: Settings) -> Parsed:
    weights, scores = s["input_name_attn_scores"], s["output_name_attention_scores"]
    op = WeightedSum.spec(
        function=s["attn_function"].lower() if weights is None else "none",
        norm=norm_spec(s["norm_value_heads"]),
        weights=isinstance(scores, str),
        causal=False,
    )
    into = (s["output_name"], scores) if isinstance(scores, str) else (s["output_name"],)
    return op, (s["input_name_values"], s["input_name_dots"] if weights is None else weights), into


def _one_source(s: Settings) -> list[Problem]:
    """Weights that are computed already are used as they are."""
    if s.get("input_name_attn_scores") is None:
        return []
    message = (
        "with input_name_attn_scores the weights of an earlier mha_sum are used as they are, so this has no effect"
    )
    return [
        Problem(key, message, s[key], "leave one of the two out")
        for key in ("input_name_dots", "attn_function")
        if key in s
    ]


def _named_or_off(value: object) -> tuple[str, str] | None:
    return ("must be a name, or False", "") if value is True else None


ATTENTION: dict[str, ModuleType] = {
    "make_heads": ModuleType(
        {**X, "num_heads": Key(1, (int,), smallest=1)}, _make_heads, fields={"heads": "num_heads"}
    ),
    "merge_heads": ModuleType(X, _merge_heads),
    "rope": ModuleType(
        {**X, "rotate_dim": SIZE, "max_length": Key(2048, (int,), smallest=1)},
        _rope,
        fields={"features": "rotate_dim", "max_len": "max_length"},
    ),
    "mha_dots": ModuleType(
        {"input_name_queries": Key("x"), "input_name_keys": Key("x"), "output_name": Key("attn_dots")}, _mha_dots
    ),
    "attention_offset": ModuleType(
        {
            "input_name_attn_dots": Key("attn_dots"),
            "input_name_attn_offset": Key("attn_offset"),
            "output_name": Key("attn_dots"),
            "scaled": Key(False, (bool,)),
        },
        _attention_offset,
    ),
    "attention_bias": ModuleType(
        {
            "input_name_attn_dots": Key("attn_dots"),
            "input_name_attn_bias": Key("attn_bias"),
            "output_name": Key("attn_dots"),
        },
        _attention_bias,
    ),
    "mha_sum": ModuleType(
        {
            "input_name_values": Key("x"),
            "input_name_dots": Key("attn_dots"),
            "input_name_attn_scores": Key(None),
            "output_name": Key("x"),
            "attn_function": Key("softmax", (str,), ("softmax", "relu", "tanh")),
            "norm_value_heads": NORM,
            "output_name_attention_scores": Key(False, (str, bool), check=_named_or_off),
        },
        _mha_sum,
        {"input_name_attn_dots": "input_name_dots", "output_name_attn_scores": "output_name_attention_scores"},
        {"function": "attn_function", "norm": "norm_value_heads", "weights": "output_name_attention_scores"},
        _one_source,
    ),
}
