"""How a step of a program uses parts of each kind: what they take and give, and how they are called.

A part's own inputs come first among the names that a step reads: `x`; ids or images for an embedding; `x` and a branch
for a residual; q and k for a rotation; q, k and v for an attention; scores for a bias. Further names reach it as the
streams of those names (a norm takes one, its condition). What a part publishes is named after its result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from variform.core.dims import Shape, shape_text
from variform.core.part import Part
from variform.core.spec import Spec, described
from variform.errors import ShapeError, did_you_mean
from variform.parts.kinds import Embedding, Op, State, StreamPart, Streams
from variform.stack.adapters import ADAPTERS, ANY, FEATURES, REFUSED, STREAM_CONTENTS, Adapter, Outputs, last, numbers
from variform.stack.declared import check_declared
from variform.stack.inputs import as_mask

__all__ = [
    "ADAPTERS",
    "ANY",
    "FEATURES",
    "REFUSED",
    "STREAM_CONTENTS",
    "apply",
    "input_type",
    "output_shapes",
    "published_shapes",
    "step_facts",
]

_PUBLISHING = ("layer", "mixer", "feedforward", "stack", "embedding")
"""The kinds that can publish streams, or hold parts that do."""


def apply(
    part: Part,
    names: Sequence[str],
    inputs: Sequence[Any],
    into: Sequence[str],
    streams: Streams,
    slot: str,
    new: State,
) -> Outputs:
    """Call a part that is no op.

    Args:
        part: the part.
        names: what the step reads.
        inputs: the values of these names.
        into: what the step writes.
        streams: side inputs of the program as a whole.
        slot: the name of this place, for decode state.
        new: where new decode state goes; changed in place.

    Raises:
        ShapeError: the part published a stream that the step does not name.
    """
    adapter = ADAPTERS[part.kind]
    count = adapter.mains
    if len(inputs) > count:
        extra = zip(names[count:], inputs[count:], strict=True)
        streams = {**streams, **{name: as_mask(value) if name == "mask" else value for name, value in extra}}
    published: State = {}
    if part.kind == "norm":  # any name is that of the condition
        results: Outputs = (part(*inputs),)
    else:
        results = adapter.run(part, inputs[:count], streams, slot, published)
    if not published:
        return results
    state = published.pop("state", None)
    if state:
        new.setdefault("state", {}).update(state)
    results += tuple(published.pop(name) for name in into[len(results) :])
    lost = [name for name, value in published.items() if value is not None]
    if lost:
        raise ShapeError(f"{part.kind} {part.name!r} publishes {', '.join(lost)}: name it among what the step writes")
    return results


def output_shapes(op: Spec, names: Sequence[str], inputs: tuple[Shape, ...], into: Sequence[str]) -> tuple[Shape, ...]:
    """The shapes of all that a step with a part that is no op writes.

    Args:
        op: the resolved part.
        names: what the step reads.
        inputs: their shapes.
        into: what the step writes.

    Raises:
        ShapeError: the part does not take these shapes or streams, or its published streams are not named.
    """
    adapter = ADAPTERS[op.kind]
    mains, extra = inputs[: adapter.mains], inputs[adapter.mains :]
    streams = dict(zip(names[adapter.mains :], extra, strict=True))
    if op.kind == "norm" and len(streams) > 1:
        raise ShapeError("a norm takes one stream, and a condition at most")
    if op.kind != "norm":
        _refuse_unread(op, adapter, streams)
        _check_streams(op, mains, streams)
        check_declared(op, mains[0], streams)
    results = adapter.shapes(op, mains, streams)
    named, published = tuple(into[len(results) :]), published_shapes(op, mains[0], streams)
    if sorted(named) == sorted(published):
        return results + tuple(published[name] for name in named)
    if published:
        told = ", ".join(published)
        raise ShapeError(f"{op.kind} {op.name!r} publishes {told}: name just that after what it writes")
    return results


def published_shapes(op: Spec, main: Shape, streams: Mapping[str, Shape]) -> dict[str, Shape]:
    """The streams that a part and the parts below it publish, with their shapes.

    Args:
        op: the resolved part.
        main: the shape of its first input.
        streams: the shapes of the streams that it is given.
    """
    found: dict[str, Shape] = {}
    if not getattr(op.part, "ends_streams", False):
        for _, _, child in op.children():
            inner = described(child)
            if inner is not None and inner.kind in _PUBLISHING:
                found.update(published_shapes(inner, main, streams))
    if issubclass(op.part, (StreamPart, Embedding)):
        found.update(op.part.out_streams(op.args, main, streams))
    return found


def step_facts(part: type[Part], shapes: tuple[Shape, ...]) -> dict[str, Any]:
    """Sizes that a part in a step may inherit, from the shapes of what the step reads."""
    if issubclass(part, Op) or part.kind not in ADAPTERS:
        return dict(numbers(dim=last(shapes[0])))
    adapter = ADAPTERS[part.kind]
    return dict(adapter.facts(shapes)) if len(shapes) >= adapter.mains else {}


def input_type(part: Part, name: str, place: int) -> torch.dtype | None:
    """The type of the tensors that a built part takes from the name at a place of its step; None for floats."""
    if isinstance(part, Op):
        return torch.long if place in part.ids else None
    if place < ADAPTERS[part.kind].mains:
        example = part.example_inputs(1, 1) if isinstance(part, Embedding) else None
        return None if example is None or example.is_floating_point() else example.dtype
    return {"ids": torch.long, "mask": torch.bool}.get(STREAM_CONTENTS.get(name, ""))


def _declared_reads(op: Spec) -> frozenset[str]:
    return frozenset().union(*(spec.part.reads_streams(spec.args) for _, spec in op.walk()))


def _refuse_unread(op: Spec, adapter: Adapter, streams: Mapping[str, Shape]) -> None:
    if not streams:
        return
    known = (_declared_reads(op) if adapter.reads is None else adapter.reads) - {"state", "cache"}
    for name in streams:
        if name not in known:
            hint = did_you_mean(name, known) if known else "it reads no stream"
            raise ShapeError(f"{op.kind} {op.name!r} does not read the stream {name!r}; {hint}")


def _check_streams(op: Spec, mains: tuple[Shape, ...], streams: Mapping[str, Shape]) -> None:
    """The streams that belong to the rows and tokens of the part's own input must have its sizes."""
    x, tokens = mains[0], None
    if op.kind in ("attention", "rotation", "bias"):
        tokens = (x[0], x[2]) if len(x) == 4 else None
    else:
        tokens = (x[0], x[1]) if len(x) in (2, 3) else None
    for name, shape in streams.items():
        fits = tokens is None or {
            "positions": shape in (tokens, tokens[1:]),
            "valid": shape == tokens,
            "segments": shape == tokens,
            "context": len(shape) == 3 and shape[0] == tokens[0],
            "context_mask": len(shape) in (2, 4),
            "mask": len(shape) in (2, 4) and shape[-2] == tokens[1],
        }.get(name, True)
        if not fits:
            raise ShapeError(
                f"the stream {name!r} is {shape_text(shape)}, and the tokens are {shape_text(tokens or x)}"
            )
