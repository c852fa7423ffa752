"""Stacks, layers and residual steps as lines."""

from __future__ import annotations

from typing import Any

from variform.core.spec import Spec, described
from variform.errors import ConfigError
from variform.lower.bodies import OPENERS
from variform.lower.writer import Place, Writer
from variform.parts.kinds import MultiResidual
from variform.parts.op.drop_path import DropPathOp
from variform.parts.op.merging import CopyOp, MergeOp
from variform.parts.op.scale import DropoutOp
from variform.parts.stream_ops.carry import AddStream, Publish
from variform.stack.adapt import published_shapes
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

LOCAL = ("x", "residual", "q", "k", "v", "gate", "normed", "ids", "image", "features", "source", "target")
"""Names that lines use themselves."""


def write_stack(writer: Writer, stack: Spec, place: Place, deep: bool) -> None:
    """A block for each layer, then the final norm; a reversible stack, whose streams take turns, stays one step."""
    before = set(writer.streams)
    writer.block()
    if stack.part is not LayerStack or stack["executor"] == "reversible" or not writer.opens(place):
        whole(writer, stack, place)
    else:
        for layer, where in place.items("layers", stack["layers"]):
            writer.block()
            write_layer(writer, layer, where, deep)
        if stack["norm"] is not None:
            writer.block()
            norm(writer, *place.child("norm", stack["norm"]))
    writer.streams &= before  # names end with their stack


def write_part(writer: Writer, part: Spec, place: Place, deep: bool) -> None:
    """The lines of a part from `x` to `x`."""
    writer.block()
    opener = OPENERS.get(part.part) if deep else None
    if part.kind == "stack":
        write_stack(writer, part, place, deep)
    elif opener is not None and opener.fits(part, writer.streams):
        opener.write(writer, part, place, "x")
    else:
        write_layer(writer, part, place, deep)


def write_layer(writer: Writer, layer: Spec, place: Place, deep: bool) -> None:
    """The lines of a layer; one that is not known to be made of such stays one step."""
    if layer.part is TransformerLayer and writer.opens(place):
        for child, where in place.items("sublayers", layer["sublayers"]):
            write_layer(writer, child, where, deep)
    elif layer.part is Sublayer and _is_plain(layer) and writer.opens(place):
        _sublayer(writer, layer, place, deep)
    elif layer.part is Publish:
        writer.step(CopyOp.spec(), into=(_published(writer, layer["stream"]),))
    elif layer.part is AddStream:
        writer.step(MergeOp.spec(how="add"), ("x", layer["stream"]))
    else:
        whole(writer, layer, place)


def _is_plain(layer: Spec) -> bool:
    """Whether all that a residual step does can be told in lines: what a branch reads and joins is one tensor each."""
    residual: Any = described(layer["residual"])
    opens = residual is not None and issubclass(residual.part, MultiResidual)
    return not layer["layer_drop"] and layer["entry"] is None and not opens


def _sublayer(writer: Writer, layer: Spec, place: Place, deep: bool) -> None:
    writer.step(CopyOp.spec(), into=("residual",))
    if layer["norm"] is not None:
        norm(writer, *place.child("norm", layer["norm"]))
    body, where = place.child("body", layer["body"])
    opener = OPENERS.get(body.part) if deep else None
    if opener is None or not opener.fits(body, writer.streams) or not writer.opens(where):
        whole(writer, body, where)
    else:
        opener.write(writer, body, where, "x")
    if layer["branch_norm"] is not None:
        norm(writer, *place.child("branch_norm", layer["branch_norm"]))
    if layer["dropout"]:
        writer.step(DropoutOp.spec(p=layer["dropout"]))
    if layer["drop_path"]:
        writer.step(DropPathOp.spec(p=layer["drop_path"]))
    if layer["residual"] is None:
        writer.step(MergeOp.spec(how="add"), ("residual", "x"))
    else:
        joining, there = place.child("residual", layer["residual"])
        streams = sorted(streams_of(joining) & writer.streams)
        writer.step(joining, ("residual", "x", *streams), place=there)
    if layer["out_norm"] is not None:
        norm(writer, *place.child("out_norm", layer["out_norm"]))


def whole(writer: Writer, part: Spec, place: Place, reads: str = "x") -> None:
    """A part as one step, with the streams that it reads, and names for those that it publishes."""
    called = part.part.reads_streams(part.args) if part.kind == "head" else streams_of(part)
    shapes: Any = dict.fromkeys(called & writer.streams, (1, 1))  # a head holds parts that it does not call
    names = [name for name in published_shapes(part, (1, 1, 1), shapes) if name not in shapes]
    again = [name for name in published_shapes(part, (1, 1, 1), shapes) if name in shapes]
    into = ("x", *again, *(_published(writer, name) for name in names))
    writer.step(part, (reads, *sorted(shapes)), into, place)


def norm(writer: Writer, part: Spec, place: Place) -> None:
    """A norm of `x`."""
    condition = ("condition",) if "condition" in streams_of(part) & writer.streams else ()
    writer.step(part, ("x", *condition), place=place)


def streams_of(part: Spec) -> frozenset[str]:
    """The streams that a part and those below it read."""
    return frozenset().union(*(spec.part.reads_streams(spec.args) for _, spec in part.walk()))


def _published(writer: Writer, name: str) -> str:
    if name in LOCAL:
        raise ConfigError(f"a program has a use of its own for the name of the stream {name!r}; rename the stream")
    writer.streams.add(name)
    return name
