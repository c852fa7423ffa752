"""Whole models as blocks of lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from variform.core.spec import Spec, described
from variform.errors import ConfigError
from variform.lower.bodies import OPENERS
from variform.lower.layers import streams_of, whole, write_part, write_stack
from variform.lower.writer import Place, Writer
from variform.parts.op.merging import CopyOp
from variform.stack.encoder_decoder import EncoderDecoder
from variform.stack.model import Transformer
from variform.stack.positions import CountPositions

BATCH = "BSZ"
STREAM_KINDS = ("stack", "layer", "mixer", "feedforward")
SIDES = ("positions", "valid", "segments", "mask", "context", "context_mask")
Sizes = tuple[int | str, ...]
Shapes = dict[str, Sizes]


@dataclass(frozen=True)
class Inputs:
    """What a program that stands for a model can take.

    Args:
        mains: the main inputs with their shapes.
        streams: the side inputs that the model reads, with theirs.
    """

    mains: Shapes
    streams: Shapes


def inputs_of(model: Spec) -> Inputs:
    """The inputs of a model.

    Raises:
        ConfigError: no program is known for models like this one.
    """
    if model.part is Transformer:
        name, sizes = _main(model)
        if len(sizes) < 4:
            return Inputs({name: sizes}, _streams(model, "L"))
        found = _streams(model, _tokens_of(model))
        found.pop("positions", None)  # the patches of an image have fixed ones
        return Inputs({name: sizes}, found)
    if model.part is EncoderDecoder:
        encoder, decoder = _sides(model)
        mains = {
            "source": _renamed(_main(encoder)[1], "L_source"),
            "target": _renamed(_main(decoder)[1], "L"),
        }
        theirs, ours = _streams(encoder, "L_source"), _streams(decoder, "L")
        streams: Shapes = {name: ours[name] for name in SIDES[:4] if name in ours and name != "valid"}
        if "valid" in theirs and "context_mask" in ours:
            streams["source_valid"] = (BATCH, "L_source")
        if "valid" in ours:
            streams["target_valid"] = ours["valid"]
        return Inputs(mains, streams)
    if model.kind in STREAM_KINDS:
        return Inputs({"x": (BATCH, "L", _width(model))}, _streams(model, "L"))
    hint = "take a model, a stack, a layer, a mixer or a feedforward"
    raise ConfigError(f"there is no program for the {model.kind} {model.name!r}", hint=hint)


def write_model(writer: Writer, model: Spec, streams: frozenset[str], deep: bool) -> None:
    """The lines of a model that takes these streams."""
    if model.part is Transformer:
        writer.streams = set(streams)
        _transformer(writer, model, Place(), _main(model)[0], deep, headed=True)
        return
    if model.kind in STREAM_KINDS:
        writer.streams = set(streams)
        write_part(writer, model, Place(), deep)
        return
    encoder, decoder = _sides(model)
    own = streams - {"source_valid", "target_valid"}
    writer.block()
    if "source_valid" in streams:
        writer.step(CopyOp.spec(), ("source_valid",), ("valid",))
        writer.streams = {"valid"}
    _transformer(writer, encoder, Place("encoder"), "source", deep, headed=False)
    writer.block()
    writer.step(CopyOp.spec(), into=("context",))
    writer.streams = {*own, "context"}
    for source, name in (("source_valid", "context_mask"), ("target_valid", "valid")):
        if source in streams:
            writer.step(CopyOp.spec(), (source,), (name,))
            writer.streams.add(name)
    _transformer(writer, decoder, Place("decoder"), "target", deep, headed=True)


def _transformer(writer: Writer, model: Spec, place: Place, main: str, deep: bool, headed: bool) -> None:
    writer.block()
    reads = streams_of(model)
    padded = [name for name in ("valid", "segments") if name in writer.streams]
    if padded and "positions" in reads - writer.streams and len(_main(model)[1]) < 4:
        given = "both" if len(padded) == 2 else padded[0]
        writer.step(CountPositions.spec(given=given), padded, ("positions",))
        writer.streams.add("positions")
    if model["embedding"] is not None:
        _embedding(writer, *place.child("embedding", model["embedding"]), main, deep)
    elif main != "x":
        writer.step(CopyOp.spec(), (main,))
    for stack, where in place.items("stacks", model["stacks"]):
        write_stack(writer, stack, where, deep)
    if headed and model["head"] is not None:
        if not model["stacks"] or described(model["stacks"][-1]).get("norm") is None:
            writer.block()  # else it stands with the final norm
        head, where = place.child("head", model["head"])
        opener = OPENERS.get(head.part) if deep else None
        if opener is not None and writer.opens(where):
            opener.write(writer, head, where, "x")
        else:
            whole(writer, head, where)


def _embedding(writer: Writer, part: Spec, place: Place, main: str, deep: bool) -> None:
    opener = OPENERS.get(part.part) if deep else None
    if opener is None or not opener.fits(part, writer.streams) or not writer.opens(place):
        whole(writer, part, place, main)
    else:
        opener.write(writer, part, place, main)


def _main(model: Spec) -> tuple[str, Sizes]:
    """The name and the shape of a model's main input."""
    if model["embedding"] is None:
        return "x", (BATCH, "L", model["dim"])
    part: Any = described(model["embedding"])
    sizes = tuple(BATCH if size == "B" else size for size in part.part.in_sizes(part.args))
    name = "ids" if part.part.takes(part.args) == "ids" else "image" if len(sizes) == 4 else "features"
    return name, sizes


def _streams(model: Spec, length: int | str) -> Shapes:
    """The side inputs that a model reads, with their shapes; those of a prefix are not for programs."""
    width = model.get("dim_context") or _width(model)
    shapes: Shapes = {
        **dict.fromkeys(("positions", "valid", "segments"), (BATCH, length)),
        "mask": (BATCH, 1, length, length),
        "context": (BATCH, "L_context", width),
        "context_mask": (BATCH, "L_context"),
    }
    return {name: shapes[name] for name in SIDES if name in streams_of(model)}


def _tokens_of(model: Spec) -> int | str:
    """How many tokens an image becomes."""
    part: Any = described(model["embedding"])
    length = part.part.out_shape(part.args, part.part.in_sizes(part.args), {})[1]
    return length if isinstance(length, int) else str(length)


def _width(part: Spec) -> int:
    """The features of a part, told by itself or by the first below it that does."""
    told = (spec.get("dim") for _, spec in part.walk())
    width = next((dim for dim in told if isinstance(dim, int)), None)
    if width is None:
        raise ConfigError("no part here says how many features it has", hint="give dim=...")
    return width


def _renamed(sizes: Sizes, length: str) -> Sizes:
    return tuple(length if size == "L" else size for size in sizes)


def _sides(model: Spec) -> tuple[Spec, Spec]:
    encoder, decoder = described(model["encoder"]), described(model["decoder"])
    for side in (encoder, decoder):
        if side.part is not Transformer:
            raise ConfigError(f"there is no program for an encoder-decoder with the model {side.name!r} as a side")
    return encoder, decoder
