"""Parts of streams, and streams joined: slices and concatenation along any dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from variform.core.dims import Dim, Shape, parse_dim, shape_text, size_of
from variform.core.inherit import inherit
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ConfigError, Problem, ShapeError, did_you_mean
from variform.parts.kinds import CONTENTS, Op
from variform.parts.op.common import STEPWISE
from variform.parts.op.scale import place

Bound = int | str
Size = int | Dim
ANYTHING = frozenset(CONTENTS)


@register("cut")
class CutOp(Op):
    """x[..., start:stop, ...] along one dimension.

    A bound is a number, negative ones count from the end, or an expression over named sizes: `L_in`, `L_in - 2`.
    A name gets its size, when the program runs, from the tensors read: from x, or from further ones that are read
    for their sizes alone.

    Shapes:
        x: [..., size, ...]
        further tensors: any -> [..., stop - start, ...]

    Args:
        start: the first index kept.
        stop: the one after the last; the end when None.
        axis: the dimension; negative ones count from the end.
        read_sizes: the shapes of all that is read, as they are written; a program fills them in.
    """

    arity: ClassVar[int | None] = None
    ordered: ClassVar[bool] = True
    can: ClassVar[Can] = STEPWISE
    accepts: ClassVar[tuple[frozenset[str], ...]] = (ANYTHING,) * 4

    def __init__(
        self,
        start: Bound = 0,
        stop: Bound | None = None,
        axis: int = 1,
        read_sizes: tuple[tuple[int | str, ...], ...] | None = inherit(None),
    ) -> None:
        super().__init__()
        self.start = parse_bound(start)
        self.stop = None if stop is None else parse_bound(stop)
        self.axis = axis
        self.read = tuple(tuple(parse_dim(size) for size in shape) for shape in read_sizes or ())

    @classmethod
    def sizes(cls, args: Facts, inputs: tuple[Shape, ...]) -> Facts:
        """The shapes as they are written."""
        return {"read_sizes": tuple(tuple(d if isinstance(d, int) else str(d) for d in shape) for shape in inputs)}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The bounds can be read; a causal model does not move tokens forward."""
        found = []
        for name in ("start", "stop"):
            try:
                parse_bound(facts[name] or 0)
            except ConfigError as error:
                found += [problem.below(name) for problem in error.problems]
        if facts.get("causal") is True and facts["start"] != 0 and _sequence_axis(facts):
            message = "what starts later moves to an earlier place, and the model is causal"
            found.append(Problem("start", message, facts["start"], "start at 0, or use a shift"))
        return found

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """Moving tokens forward is not causal; with another dimension than the last it may come to that."""
        causal = args["start"] == 0 or args["axis"] == -1
        return Can(**{**vars(cls.can), "causal": causal})

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The dimension has what lies between the bounds."""
        written = args["read_sizes"]
        if written is not None and tuple(tuple(map(parse_dim, shape)) for shape in written) != inputs:
            raise ShapeError("read_sizes are those of another place; leave them out, and they are filled in")
        x = inputs[0]
        axis = place(args["axis"], x)
        start, stop = _ends(parse_bound(args["start"]), args["stop"], x[axis])
        _refuse_untold([args["start"], args["stop"]], inputs)
        left = stop - start
        if isinstance(left, int) and left < 1:
            raise ShapeError(f"nothing lies between {start} and {stop}")
        if isinstance(start, int) and start < 0:
            raise ShapeError(f"the dimension {axis} has {x[axis]} indices, and is to be cut at {start}")
        beyond = stop - x[axis]
        if isinstance(beyond, int) and beyond > 0:
            raise ShapeError(f"the dimension {axis} has {x[axis]} indices, and is to be cut at {stop}")
        return ((*x[:axis], left, *x[axis + 1 :]),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Take the slice."""
        x = inputs[0]
        size = x.shape[self.axis]
        start, stop = _ends(self.start, self.stop, size)
        if isinstance(start, Dim) or isinstance(stop, Dim):
            named = solve_sizes(self.read, [tuple(tensor.shape) for tensor in inputs])
            start, stop = size_of(start, named), size_of(stop, named)
        if not 0 <= start < stop <= size:
            raise ShapeError(
                f"indices {start} to {stop} of dimension {self.axis} are wanted, and the tensor is {list(x.shape)}"
            )
        return x.narrow(self.axis, start, stop - start)


@register("cat")
class CatOp(Op):
    """Tensors one after another along one dimension.

    Shapes:
        two or more: [..., size_i, ...], all other sizes equal -> [..., sum of size_i, ...]

    Args:
        axis: the dimension; negative ones count from the end.
    """

    arity: ClassVar[int | None] = None
    ordered: ClassVar[bool] = True
    can: ClassVar[Can] = STEPWISE
    accepts: ClassVar[tuple[frozenset[str], ...]] = (ANYTHING,) * 4

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """A causal model does not lengthen its sequence: what is cut off again would have moved."""
        if facts.get("causal") is True and _sequence_axis(facts):
            message = "tokens joined along the sequence move to other places, and the model is causal"
            return [Problem("axis", message, facts["axis"], "join features (-1)")]
        return []

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """Causal along the features."""
        return Can(**{**vars(cls.can), "causal": args["axis"] == -1})

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """What all inputs hold."""
        return (contents[0] if len(set(contents)) == 1 else "",)

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """One size adds up."""
        if len(inputs) < 2:
            raise ShapeError("at least two streams are joined")
        first = inputs[0]
        axis = place(args["axis"], first)
        total: Size = 0
        for shape in inputs:
            if len(shape) != len(first):
                raise ShapeError(
                    f"streams that are joined need equal ranks, and {shape_text(shape)} is not {shape_text(first)}"
                )
            for index, (a, b) in enumerate(zip(first, shape, strict=True)):
                if index != axis and a != b:
                    raise ShapeError(f"joined along dimension {axis}, all others must be equal, and {b} is not {a}")
            total = total + shape[axis]
        return ((*first[:axis], total, *first[axis + 1 :]),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Join."""
        return torch.cat(inputs, dim=self.axis)


def parse_bound(text: Bound) -> Size:
    """A bound as it is written; unlike a size it may be 0 or negative."""
    return text if isinstance(text, int) else parse_dim(text)


def solve_sizes(shapes: Sequence[Shape], actual: Sequence[Sequence[int]]) -> dict[str, int]:
    """The sizes behind names, from shapes and the real sizes; `2*L + 1` tells L, `L//2` does not.

    Args:
        shapes: of some tensors.
        actual: their real sizes.
    """
    found: dict[str, int] = {}
    for shape, real in zip(shapes, actual, strict=True):
        for dim, size in zip(shape, real, strict=True):
            solvable = _line(dim)
            if solvable is not None:
                name, factor, rest = solvable
                found.setdefault(name, (size - rest) // factor)
    return found


def names_told(shapes: Sequence[Shape]) -> frozenset[str]:
    """The names whose sizes tensors of these shapes tell."""
    return frozenset(line[0] for shape in shapes for dim in shape if (line := _line(dim)) is not None)


def _line(dim: Size) -> tuple[str, int, int] | None:
    """(name, a, b) of a size a * name + b; None for any other."""
    if not isinstance(dim, Dim):
        return None
    terms: Mapping[tuple[object, ...], int] = dict(dim.terms)
    named = [monomial for monomial in terms if monomial]
    if len(named) != 1 or len(named[0]) != 1 or not isinstance(named[0][0], str):
        return None
    return named[0][0], terms[named[0]], terms.get((), 0)


def _refuse_untold(bounds: Sequence[Bound | None], inputs: tuple[Shape, ...]) -> None:
    """Refuse names whose size no tensor that is read tells."""
    sizes = [parse_bound(bound) for bound in bounds if bound is not None]
    needed = {name for size in sizes if isinstance(size, Dim) for name in size.symbols()}
    known = names_told(inputs)
    missing = sorted(needed - known)
    if missing:
        hint = did_you_mean(missing[0], known) if known else "name a size of what is read"
        raise ShapeError(
            f"nothing that is read tells the size {missing[0]!r}; {hint}; or read a stream that has it too"
        )


def _ends(start: Size, stop: Size | str | None, size: Size) -> tuple[Size, Size]:
    """Both bounds counted from the front."""
    stop = size if stop is None else parse_bound(stop) if isinstance(stop, str) else stop
    start, stop = (size + bound if isinstance(bound, int) and bound < 0 else bound for bound in (start, stop))
    return start, stop


def _sequence_axis(facts: Facts) -> bool:
    """Whether the dimension is that of the tokens, or may be."""
    shapes = facts.get("read_shapes", ())
    rank = len(shapes[0]) if shapes else 0
    axis = facts["axis"]
    return not rank or axis % rank == (1 if rank < 4 else 2)
