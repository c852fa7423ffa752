"""Steps as module dicts: a module type of the dialect where one says the same, else the registered part by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from variform.core.fields import check_type, field_map, fields_of
from variform.core.inherit import Inherit
from variform.core.part import Part
from variform.core.plain import to_dict
from variform.core.registry import parts
from variform.core.spec import Spec, described
from variform.dialects.configaformers.modules import TYPES, norm_spec, step_of
from variform.dialects.configaformers.modules.keys import Key
from variform.dialects.configaformers.registered import NAMING, STANDS_FOR
from variform.errors import ConfigError
from variform.parts.norm.clamped import ClampedRMSNorm
from variform.parts.norm.norms import LayerNorm
from variform.parts.op.cutting import CatOp, CutOp
from variform.parts.op.heads import MergeHeads, Offset, Scores, SplitHeads, WeightedSum
from variform.parts.op.merging import CopyOp, MergeOp
from variform.parts.op.packing import BatchToFeatures, PackBatch, UnpackBatch, UnpackFeatures
from variform.parts.op.rotary import Rotary
from variform.parts.op.sampling import DownSample, UpSample
from variform.parts.op.scale import DropoutOp, ScaleOp
from variform.parts.op.shift import ShiftOp
from variform.parts.op.tokenwise import ActivationOp, EmbeddingOp, LinearOp
from variform.stack.lines import Step
from variform.stack.values import tells_size

Module = dict[str, Any]
Number = Callable[[int], int | str]
"""How a number is written: as it is, or by the name of a size."""

WORDS: dict[type[Part], tuple[str, ...]] = {
    EmbeddingOp: ("embedding",),
    LinearOp: ("linear",),
    ActivationOp: ("activation",),
    LayerNorm: ("norm",),
    ClampedRMSNorm: ("norm",),
    ScaleOp: ("scale_dim", "gate"),
    DropoutOp: ("dropout",),
    CopyOp: ("make_stream",),
    MergeOp: ("merge_streams",),
    CutOp: ("cut_stream", "cut_sequence"),
    CatOp: ("cat_streams",),
    SplitHeads: ("make_heads",),
    MergeHeads: ("merge_heads",),
    Rotary: ("rope",),
    Scores: ("mha_dots",),
    Offset: ("attention_offset", "attention_bias"),
    WeightedSum: ("mha_sum",),
    ShiftOp: ("shift",),
    DownSample: ("down_sample",),
    UpSample: ("up_sample",),
    PackBatch: ("pack_batch",),
    UnpackBatch: ("unpack_batch",),
    BatchToFeatures: ("batch_2_features",),
    UnpackFeatures: ("unpack_features",),
}
"""The module types of each part."""

_BY_NAME = ("op", "layer", "mixer", "feedforward", "norm", "stack", "embedding", "head", "attention")
"""The kinds whose names say by themselves what a part does."""

_COMMON = ("type", "share", "label", "when", *NAMING)


def type_of(op: Spec) -> str:
    """The type of the module that a part is written as."""
    step = Step.spec(op=op, reads=("x", "y", "z")[: getattr(op.part, "arity", 1) or 2], into=("x",))
    return str(module_of(step, op)["type"])


def module_of(step: Spec, bare: Spec, number: Number = lambda value: value) -> Module:
    """The dict of a step, without its label and what it shares.

    Args:
        step: the step, resolved.
        bare: its part, without what resolution fills in.
        number: how numbers are written.

    Raises:
        ConfigError: the part has a field of the name of a key that all modules have, or cannot be written.
    """
    step, op = step.replace(reads=[name for name in step["reads"] if not tells_size(name)]), described(step["op"])
    for word in _candidates(op.part, step["label"]):
        module = _in_words(word, step, bare, number)
        if module is not None:
            return module
    return _by_name(step, bare, number)


def _candidates(part: type[Part], label: str) -> list[str]:
    """The module types to try, the one that the step is called by first, in its own writing."""
    words = [label if word == label.lower() else word for word in WORDS.get(part, ())]
    return sorted(words, key=lambda word: word != label)


def _in_words(word: str, step: Spec, bare: Spec, number: Number) -> Module | None:
    """The dict with a module type of the dialect; None where it does not say the same."""
    kind = TYPES[word.lower()]
    keys = {**_names(kind.keys, step)}
    for name, key in {**{key: key for key in kind.keys}, **kind.fields}.items():
        if key in kind.keys and key not in keys and name in bare.args:
            keys[key] = _setting(bare.args[name])
    if "norm_type" in kind.keys:
        keys["norm_type"] = _norm_name(bare)
    if "gate_type" in keys:
        keys["gate_type"] = {-3: "heads", -1: "features"}.get(bare["axis"])
    if "instructions" in keys:
        keys["instructions"] = [{"features": [p[0], p[1]], "relative_pos": p[2]} for p in bare["pieces"]]
    short = {key: value for key, value in keys.items() if key in kind.keys and value != kind.keys[key].default}
    module = {"type": word, **short}
    said, problems = step_of(module)
    if problems or (said["reads"], said["into"]) != (step["reads"], step["into"]):
        return None
    if not _agrees(said["op"], bare, described(step["op"])):
        return None
    return {key: number(value) if _is_size(kind.keys.get(key), value) else value for key, value in module.items()}


def _names(keys: Mapping[str, Key], step: Spec) -> dict[str, Any]:
    """What a module reads and writes, under its keys."""
    if "input_list" in keys:
        return {"input_list": list(step["reads"]), "output_name": step["into"][0]}
    ins = [key for key in keys if key.startswith("input_name")]
    outs = [key for key in keys if key.startswith("output_name")]
    return {**dict(zip(ins, step["reads"], strict=False)), **dict(zip(outs, step["into"], strict=False))}


def _setting(value: Any) -> Any:
    """The value of a field as that of a key: norms by name, a single function without a list."""
    if isinstance(value, Spec):
        return _norm_name(value)
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else list(value)
    return value


def _norm_name(norm: Spec) -> str | None:
    for name in ("layer_norm", "rms_norm", "scale_norm"):
        known = norm_spec(name)
        if known is not None and known.part is norm.part and _agrees(known, norm, norm):
            return name
    return None


def _agrees(said: Spec, bare: Spec, op: Spec) -> bool:
    """Whether a description resolves to a part: what it leaves open must be what the surroundings provide."""
    if said.part is not op.part:
        return False
    for f in fields_of(op.part):
        value, kept, wanted = said[f.name], bare[f.name], op[f.name]
        if isinstance(value, Inherit):
            alone = bare is op and (wanted is None or f.name in ("dim", "size"))  # the surroundings are not known
            if f.name in bare.args and not alone:
                return False
        elif isinstance(value, Spec):
            if not (isinstance(wanted, Spec) and isinstance(kept, Spec) and _agrees(value, kept, wanted)):
                return False
        elif value != wanted:
            return False
    return True


def _by_name(step: Spec, bare: Spec, number: Number) -> Module:
    """The dict with a registered part, its fields in plain form."""
    reads, into = list(step["reads"]), list(step["into"])
    module: Module = {"type": part_name(bare.part)}
    if reads != ["x"]:
        module.update({"input_name": reads[0]} if len(reads) == 1 else {"input_names": reads})
    if into != ["x"]:
        module["output_name"] = into[0] if len(into) == 1 else into
    fields = plain_part(bare, number)
    del fields["part"]
    taken = [name for name in fields if name in _COMMON]
    if taken:
        raise ConfigError(f"{bare.kind} {bare.name!r} has a field {taken[0]!r}, which a module has for itself")
    return {**module, **fields}


def part_name(part: type[Part]) -> str:
    """How a part is called as a type: by its name alone where that means it, else as `kind/name`."""
    kinds = field_map(Step)["op"].kind_names()
    alone = sum(name == part.name and kind in kinds for kind, name in parts()) == 1
    if alone and part.kind in _BY_NAME and part.name.lower() not in {*TYPES, *STANDS_FOR, "program"}:
        return part.name
    return f"{part.kind}/{part.name}"


def plain_part(bare: Spec, number: Number) -> dict[str, Any]:
    """A part in plain form, with numbers as they are to be written."""
    data = to_dict(bare)
    for f in fields_of(bare.part):
        value = bare.args.get(f.name)
        if isinstance(value, Spec) and isinstance(data.get(f.name), dict):
            data[f.name] = plain_part(value, number)
        elif f.name in data and type(value) is int and check_type(f.annotation, "text")[1] is not None:
            data[f.name] = number(value)
    return data


def _is_size(key: Key | None, value: Any) -> bool:
    return key is not None and key.types == (int,) and type(value) is int
