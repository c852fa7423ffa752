"""Streams against the shapes that the parts reading them declare."""

from __future__ import annotations

from collections.abc import Mapping

from variform.core.dims import Dim, Shape, shape_text
from variform.core.spec import Spec, described
from variform.errors import ShapeError
from variform.parts.kinds import StreamPart


def check_declared(op: Spec, x: Shape, streams: Mapping[str, Shape]) -> None:
    """Refuse streams of another shape than the part, or a part inside it, declares (`in_streams`).

    Args:
        op: the resolved part.
        x: the shape of its input; `B` and `L` are its sizes.
        streams: the shapes of the streams that it is given.

    Raises:
        ShapeError: a stream does not have its declared shape.
    """
    if not issubclass(op.part, StreamPart) or len(x) != 3:
        return
    declared = op.part.in_streams(op.args)
    known: dict[str, int | Dim] = {"B": x[0], "L": x[1]}
    for name, shape in declared.items():
        given = streams.get(name)
        if given is not None and not _fits(shape, given, known):
            wanted = shape_text(tuple(size if isinstance(size, int) else size.at(known) for size in shape))
            message = (
                f"{op.kind} {op.name!r} takes the stream {name!r} of shape {wanted}, and it is {shape_text(given)}"
            )
            raise ShapeError(message)
    if declared:
        return  # what is inside it has streams of its own
    for _, _, child in op.children():
        inner = described(child)
        if isinstance(inner, Spec):
            check_declared(inner, x, streams)


def _fits(declared: Shape, given: Shape, known: dict[str, int | Dim]) -> bool:
    """Whether a shape is the declared one; sizes that are a name alone take what is there, once."""
    if len(declared) != len(given):
        return False
    for size, actual in zip(declared, given, strict=True):
        if isinstance(size, Dim) and str(size).isidentifier():
            known.setdefault(str(size), actual)
    pairs = zip(declared, given, strict=True)
    return all((size if isinstance(size, int) else size.at(known)) == actual for size, actual in pairs)
