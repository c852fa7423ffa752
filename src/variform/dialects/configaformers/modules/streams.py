"""Module types that make, merge, cut and join streams."""

from __future__ import annotations

from typing import Any

from variform.dialects.configaformers.modules.keys import REQUIRED, Key, ModuleType, Parsed, Settings, X, one_to_one
from variform.parts.op.cutting import CatOp, CutOp
from variform.parts.op.tokenwise import CopyOp, MergeOp

_MERGES = {"add": "add", "mult": "multiply", "multiply": "multiply", "subtract": "subtract", "cat": "cat"}


def _make_stream(s: Settings) -> Parsed:
    return one_to_one(s, CopyOp.spec())


def _merge_streams(s: Settings) -> Parsed:
    how = _MERGES[s["merge_type"].lower()]
    return MergeOp.spec(how=how), (s["input_name_1"], s["input_name_2"]), (s["output_name"],)


def _cut_stream(s: Settings) -> Parsed:
    return one_to_one(s, CutOp.spec(start=s["start"], stop=s["end"], axis=s["cut_dim"]))


def _cut_sequence(s: Settings) -> Parsed:
    return one_to_one(s, CutOp.spec(start=s["start"], stop=s["end"], axis=1))


def _cat_streams(s: Settings) -> Parsed:
    return CatOp.spec(axis=s["cat_dim"]), tuple(s["input_list"]), (s["output_name"],)


def _names(value: Any) -> tuple[str, str] | None:
    if len(value) < 2 or not all(isinstance(name, str) and name for name in value):
        return "must be the names of two streams or more", ""
    return None


_BOUNDS = {"start": "start", "stop": "end"}
STREAMS: dict[str, ModuleType] = {
    "make_stream": ModuleType({"input_name": Key("x"), "output_name": Key(REQUIRED)}, _make_stream),
    "merge_streams": ModuleType(
        {
            "input_name_1": Key("x"),
            "input_name_2": Key("x"),
            "output_name": Key("x"),
            "merge_type": Key("add", (str,), tuple(_MERGES)),
        },
        _merge_streams,
        fields={"how": "merge_type"},
    ),
    "cut_stream": ModuleType(
        {
            **X,
            "start": Key(REQUIRED, (int, str)),
            "end": Key(REQUIRED, (int, str)),
            "cut_dim": Key(REQUIRED, (int,)),
        },
        _cut_stream,
        fields={**_BOUNDS, "axis": "cut_dim"},
    ),
    "cut_sequence": ModuleType(
        {**X, "start": Key(0, (int, str)), "end": Key(1, (int, str))},
        _cut_sequence,
        fields=_BOUNDS,
    ),
    "cat_streams": ModuleType(
        {
            "input_list": Key(REQUIRED, (list, tuple), check=_names),
            "cat_dim": Key(REQUIRED, (int,)),
            "output_name": Key("x"),
        },
        _cat_streams,
        fields={"axis": "cat_dim", "reads": "input_list"},
    ),
}
