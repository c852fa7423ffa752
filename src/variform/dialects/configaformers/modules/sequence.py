"""Module types that move, drop and regroup tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.dialects.configaformers.modules.keys import (
    REQUIRED,
    SIZE,
    Key,
    ModuleType,
    Parsed,
    Settings,
    X,
    one_to_one,
)
from variform.errors import did_you_mean
from variform.parts.op.packing import BatchToFeatures, PackBatch, UnpackBatch, UnpackFeatures
from variform.parts.op.sampling import DownSample, UpSample
from variform.parts.op.shift import ShiftOp


def _shift(s: Settings) -> Parsed:
    pieces = [(*piece["features"], piece["relative_pos"]) for piece in s["instructions"]]
    return one_to_one(s, ShiftOp.spec(pieces=pieces))


def _instructions(value: Any) -> tuple[str, str] | None:
    form = "{'features': (start, end), 'relative_pos': -1}"
    for index, piece in enumerate(value):
        if not isinstance(piece, Mapping):
            return f"is a list of dicts {form}, and item {index} is {piece!r}", ""
        keys = ("features", "relative_pos")
        for key in piece:
            if key not in keys:
                return f"item {index} has the unknown key {key!r}", did_you_mean(str(key), keys)
        for key in keys:
            if key not in piece:
                return f"item {index} lacks {key!r}", f"write {form}"
        features = piece["features"]
        if not isinstance(features, (list, tuple)) or len(features) != 2 or not all(map(_is_integer, features)):
            return f"features of item {index} must be two integers, not {features!r}", f"write {form}"
        if not _is_integer(piece["relative_pos"]):
            return f"relative_pos of item {index} must be an integer, not {piece['relative_pos']!r}", ""
    return None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _down_sample(s: Settings) -> Parsed:
    return one_to_one(s, DownSample.spec(stride=s["stride"], start=s["start_idx"]))


def _up_sample(s: Settings) -> Parsed:
    return one_to_one(s, UpSample.spec(chunks=s["num_chunks"]))


def _pack_batch(s: Settings) -> Parsed:
    return one_to_one(s, PackBatch.spec(group=s["group_size"]))


def _unpack_batch(s: Settings) -> Parsed:
    return one_to_one(s, UnpackBatch.spec(groups=s["num_groups"]))


def _batch_2_features(s: Settings) -> Parsed:
    return one_to_one(s, BatchToFeatures.spec(groups=s["num_groups"]))


def _unpack_features(s: Settings) -> Parsed:
    return one_to_one(s, UnpackFeatures.spec(out=s["output_dim"]))


_GROUPS = {**X, "num_groups": Key(None, (int,), smallest=1)}
SEQUENCE: dict[str, ModuleType] = {
    "shift": ModuleType(
        {**X, "instructions": Key(REQUIRED, (list, tuple), check=_instructions)},
        _shift,
        fields={"pieces": "instructions"},
    ),
    "down_sample": ModuleType(
        {**X, "stride": SIZE, "start_idx": Key(0, (int,), smallest=0)}, _down_sample, fields={"start": "start_idx"}
    ),
    "up_sample": ModuleType({**X, "num_chunks": SIZE}, _up_sample, fields={"chunks": "num_chunks"}),
    "pack_batch": ModuleType(
        {**X, "group_size": Key(10, (int,), smallest=1)}, _pack_batch, fields={"group": "group_size"}
    ),
    "unpack_batch": ModuleType(_GROUPS, _unpack_batch, fields={"groups": "num_groups"}),
    "batch_2_features": ModuleType(_GROUPS, _batch_2_features, fields={"groups": "num_groups"}),
    "unpack_features": ModuleType(
        {**X, "output_dim": Key(64, (int,), smallest=1)}, _unpack_features, fields={"out": "output_dim"}
    ),
}
