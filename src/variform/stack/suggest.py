"""What to change where a step of a program does not fit what it reads; asked for only once there is a mistake."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from variform.core.dims import Dim, Shape, ceil_div, shape_text
from variform.errors import ShapeError, did_you_mean
from variform.stack.values import Contents, Uses, Value, in_words, tells_size

Fits = Callable[[tuple[Shape, ...]], bool]

_FACTORS = range(2, 9)
"""The strides and numbers of chunks that are tried."""

_MOST_TRIED = 40
"""How many streams are tried in place of one."""


@dataclass(frozen=True)
class Misfit:
    """A step that does not take what it reads.

    Args:
        names: what it reads.
        values: all named tensors at this place.
        uses: what the inputs can still hold.
        wanted: what it takes at each place.
        fits: whether it takes these shapes.
    """

    names: tuple[str, ...]
    values: Mapping[str, Value]
    uses: Uses
    wanted: tuple[Contents, ...]
    fits: Fits

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of what it reads."""
        return tuple(self.values[name].shape or () for name in self.names)

    def takes(self, *changes: tuple[int, Shape]) -> bool:
        """Whether it would take these shapes at these places."""
        shapes = list(self.shapes)
        for place, shape in changes:
            shapes[place] = shape
        try:
            return self.fits(tuple(shapes))
        except ShapeError:
            return False


def repair(misfit: Misfit) -> str:
    """The hint for shapes that do not fit: one name for two sizes, a module before it, or another stream."""
    several = (
        len([name for name in misfit.names if not tells_size(name)]) > 1
    )  # a step that reads one stream says itself what it needs
    found = _first(_one_name(misfit))
    found += (_first(_modules(misfit)) or _first(_declarations(misfit))) if several else []
    found += _first(_other_streams(misfit))
    return "; or ".join(found)


def fitting(misfit: Misfit, place: int, count: int = 2) -> list[str]:
    """Streams that hold what one place takes and have a shape that it takes, the likeliest first."""
    wrong = misfit.names[place]
    likely = sorted(misfit.values, key=lambda name: -difflib.SequenceMatcher(None, wrong, name).ratio())
    return [
        name
        for name in likely[:_MOST_TRIED]
        if name not in misfit.names
        and not tells_size(name)
        and (shape := misfit.values[name].shape) is not None
        and misfit.uses.of(misfit.values[name]) & misfit.wanted[place]
        and misfit.takes((place, shape))
    ][:count]


def replace_contents(misfit: Misfit, place: int) -> str:
    """The hint for a stream that holds something else than what a place takes."""
    wanted, name = misfit.wanted[place], misfit.names[place]
    holds = misfit.uses.of(misfit.values[name])
    found = [
        f"read {_shown(misfit, other)} in place of {name!r}"
        for other in fitting(misfit, place)
        if misfit.uses.of(misfit.values[other]) <= wanted
    ][:1]
    if holds == {"ids"}:
        found.append(f"put an embedding before it, which turns the ids {name!r} into features")
    elif wanted == {"ids"}:
        found.append("declare an input of integer ids, and read that")
    elif "heads" in wanted and holds == {"features"}:
        found.append(f"split_heads of {name!r} first")
    elif "features" in wanted and holds == {"heads"}:
        found.append(f"merge_heads of {name!r} first")
    elif "scores" in wanted and holds <= {"features", "heads"}:
        found.append("compute the scores of queries and keys first, and read those")
    elif holds & {"scores", "mask"} and wanted & {"features", "heads"}:
        found.append(f"{name!r} belongs where {in_words(holds)} are read: to an offset, or to a weighted sum")
    return "; or ".join(found)


def missing(name: str, values: Mapping[str, Value], beside: Sequence[str] = ()) -> str:
    """The hint for a name that nothing has written.

    Args:
        name: what is read.
        values: all named tensors at this place.
        beside: all that the line reads: what it reads already was hardly meant, unless it is very like.
    """
    if not values:
        return "nothing has been written yet"
    very = difflib.get_close_matches(name, beside, cutoff=0.75)
    likely = (other for other in values if other in very or other not in beside)
    hint = did_you_mean(name, [other for other in likely if not tells_size(other)])
    if not hint.startswith("did"):
        shown = {n: v.shape for n, v in values.items() if v.shape is not None and not tells_size(n)}
        live = "live here: " + ", ".join(f"{n} {shape_text(shape)}" for n, shape in shown.items()) + "; or "
        hint = f"{live if shown else ''}declare {name!r} among the inputs"
    return hint


def _first(texts: Iterator[str]) -> list[str]:
    found = next(texts, None)
    return [] if found is None else [found]


def _shown(misfit: Misfit, name: str) -> str:
    return f"{name!r} {shape_text(misfit.values[name].shape or ())}"


def _one_name(misfit: Misfit) -> Iterator[str]:
    """Two names of sizes that would fit if they were one."""
    sizes = [size for shape in misfit.shapes for size in shape if isinstance(size, Dim) and str(size).isidentifier()]
    for a in dict.fromkeys(sizes):
        for b in dict.fromkeys(sizes):
            changed = [(i, tuple(a if size == b else size for size in shape)) for i, shape in enumerate(misfit.shapes)]
            if str(a) < str(b) and misfit.takes(*changed):
                yield f"{a} and {b} may differ: if they are always equal, give them one name in the inputs' shapes"


def _other_streams(misfit: Misfit) -> Iterator[str]:
    for place in reversed(range(len(misfit.names))):
        for name in fitting(misfit, place, 1):
            yield f"read {_shown(misfit, name)} in place of {misfit.names[place]!r}"


def _modules(misfit: Misfit) -> Iterator[str]:
    """One or two modules before the step, at one place or at all places of equal shapes."""
    shapes, names = misfit.shapes, misfit.names
    for place in reversed(range(len(names))):
        others = [shape for i, shape in enumerate(shapes) if i != place]
        for text, shape in _changes(names[place], shapes[place], others, misfit.values):
            if misfit.takes((place, shape)):
                yield text
    if len(set(shapes)) == 1 and len(shapes) > 1:
        both = " and ".join(map(repr, dict.fromkeys(names)))
        for text, shape in _changes(names[0], shapes[0], [], misfit.values):
            if misfit.takes(*((place, shape) for place in range(len(shapes)))):
                yield text.replace(repr(names[0]), both)


def _declarations(misfit: Misfit) -> Iterator[str]:
    """Another shape for an input."""
    for place, name in enumerate(misfit.names):
        for shape in misfit.shapes[:place] + misfit.shapes[place + 1 :]:
            if misfit.values[name].source == name and misfit.takes((place, shape)):
                yield f"declare the input {name!r} as {shape_text(shape)}"


def _changes(
    name: str, shape: Shape, others: Sequence[Shape], values: Mapping[str, Value]
) -> Iterator[tuple[str, Shape]]:
    """What single modules make of a shape, and how to say it."""
    if not shape:
        return
    if len(shape) == 4:
        batch, heads, length, dim = shape
        features = heads * dim
        for count in (other[1] for other in others if len(other) == 4):
            if isinstance(count, int) and isinstance(features, int) and features % count == 0:
                yield f"split_heads of {name!r} into {count} heads as well", (batch, count, length, features // count)
        yield f"merge_heads of {name!r} first", (batch, length, features)
    for other in others:
        if other and isinstance(other[-1], int) and isinstance(shape[-1], int) and other[-1] != shape[-1]:
            yield f"put a linear to {other[-1]} features on {name!r} first", (*shape[:-1], other[-1])
    if len(shape) == 3:
        yield from _split(name, shape, others, values)
        for other in others:
            if len(other) == 3:
                yield from _resampled(name, shape, other)


def _split(
    name: str, shape: Shape, others: Sequence[Shape], values: Mapping[str, Value]
) -> Iterator[tuple[str, Shape]]:
    dim = shape[-1]
    live = [value.shape for value in values.values() if value.shape is not None]
    for heads in dict.fromkeys(other[1] for other in (*others, *live) if len(other) == 4):
        if isinstance(dim, int) and isinstance(heads, int) and dim % heads == 0:
            yield f"split_heads of {name!r} into {heads} heads first", (shape[0], heads, shape[1], dim // heads)
    yield f"split_heads of {name!r} first", (shape[0], 1, shape[1], dim)


def _resampled(name: str, shape: Shape, other: Shape) -> Iterator[tuple[str, Shape]]:
    """Lengths that sampling changed, brought together again."""
    length, wanted = shape[1], other[1]
    for factor in _FACTORS:
        if ceil_div(length, factor) == wanted:
            yield f"down_sample {name!r} by {factor} as well", (shape[0], wanted, shape[2])
        if length == ceil_div(wanted, factor):
            back, dim = length * factor, other[2] * factor
            wider = "" if dim == shape[2] else f"a linear to {dim} features, "
            cut = "" if back == wanted else " and cut it there"
            text = f"bring {name!r} to the length {wanted}: {wider}up_sample by {factor}{cut}"
            yield text, (shape[0], wanted, other[2])
