"""Checks a program's inputs against their declared shapes when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from variform.core.dims import Dim, Shape, shape_text, size_of
from variform.errors import ShapeError, did_you_mean
from variform.parts.kinds import Op
from variform.stack.adapt import input_type
from variform.stack.execute import ModuleList
from variform.stack.lines import steps_of
from variform.stack.values import tells_size


class StreamError(ShapeError, KeyError):
    """A named tensor is missing, or was given and is not known."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class _Input:
    """One declared input: its sizes as numbers or names (expressions are checked apart), and how it is used."""

    name: str
    shape: Shape
    sizes: tuple[int | str | None, ...]
    spare: bool
    lone: bool
    dtype: torch.dtype | None


class Admission:
    """The declared inputs of a program.

    Args:
        shapes: their shapes by name.
        lines: what reads them; an input that only the `spare` places of ops read may be larger than declared, and
            of batch size 1; one that is only merged with what was computed may be of batch size 1.
    """

    def __init__(self, shapes: Mapping[str, Shape], lines: ModuleList) -> None:
        spare, lone, types = _uses(frozenset(shapes), lines)
        entries = [
            _Input(name, shape, tuple(map(_plain, shape)), name in spare, name in lone, types.get(name))
            for name, shape in shapes.items()
        ]
        # Names get their sizes from the exact.
        self.entries = tuple(sorted(entries, key=lambda entry: (entry.spare, entry.lone)))

    @property
    def shapes(self) -> dict[str, Shape]:
        """The declared shapes by name."""
        return {entry.name: entry.shape for entry in self.entries}

    def check(self, inputs: Mapping[str, Tensor], held: frozenset[str] = frozenset()) -> dict[str, Tensor]:
        """Refuse inputs that do not fit; returns those that tell sizes, which nobody gives: they take no room.

        Args:
            inputs: by name.
            held: the names of those that a decode state holds, which are not to be given.

        Raises:
            StreamError: missing or unknown names.
            ShapeError: a shape that is not the declared one.
        """
        names = [entry.name for entry in self.entries if not tells_size(entry.name)]
        _refuse_unnamed(inputs, [name for name in names if name not in held])
        for name in inputs:
            if name not in names:
                raise StreamError(f"{name!r} is no input of this program; {did_you_mean(str(name), names)}")
            if name in held:
                raise StreamError(f"the decode state holds the input {name!r}: leave it out")
        for name in names:
            if name not in inputs and name not in held:
                raise StreamError(f"the input {name!r} is missing; given: {', '.join(map(repr, inputs)) or 'nothing'}")
        sizes: dict[str, int] = {}
        origin: dict[str, str] = {}
        given = [entry for entry in self.entries if entry.name in inputs]
        ordered = sorted(given, key=lambda entry: (entry.spare, None in entry.sizes))  # names before expressions
        for entry in (*ordered, *(entry for entry in ordered if None in entry.sizes)):  # which may tell names later
            self._check(entry, inputs[entry.name], sizes, origin)
        told = [entry for entry in self.entries if tells_size(entry.name)]
        like = next(iter(inputs.values())) if told else None
        return {} if like is None else {e.name: like.new_empty(()).expand(size_of(e.shape[0], sizes)) for e in told}

    def check_held(self, inputs: Mapping[str, Tensor], known: Mapping[str, int]) -> None:
        """Refuse inputs that a decode state is to hold and that do not fit it.

        Args:
            inputs: by name.
            known: the state's sizes by name.

        Raises:
            ShapeError: a shape that is not the declared one.
        """
        sizes, origin = dict(known), dict.fromkeys(known, "the decode state")
        for entry in self.entries:
            if entry.name in inputs:
                self._check(replace(entry, spare=False, lone=False), inputs[entry.name], sizes, origin)

    def _check(self, entry: _Input, value: Any, sizes: dict[str, int], origin: dict[str, str]) -> None:
        if not isinstance(value, Tensor):
            raise ShapeError(f"the input {entry.name!r} must be a tensor, not a {type(value).__name__}")
        if entry.dtype is torch.long and (value.is_floating_point() or value.dtype is torch.bool):
            raise ShapeError(f"the input {entry.name!r} takes integer ids, not {value.dtype}")
        declared, given = shape_text(entry.shape), list(value.shape)
        if value.dim() != len(entry.shape):
            raise ShapeError(f"the input {entry.name!r} is declared {declared}, and has the shape {given}")
        for axis, size in enumerate(entry.sizes):
            actual = value.shape[axis]
            if isinstance(size, str) and size not in sizes:
                if not entry.spare:
                    sizes[size], origin[size] = actual, entry.name
                continue
            if size is None and not _bound(entry.shape[axis], sizes):
                if not entry.spare and (told := _told(entry.shape[axis], sizes, actual)):
                    name, number = told
                    if number is None:
                        raise ShapeError(
                            f"the input {entry.name!r} is declared {declared}, and has the shape {given}: "
                            f"its size {axis} is {actual}, which no {name} makes {entry.shape[axis]}"
                        )
                    sizes[name], origin[name] = number, entry.name
                continue
            wanted = size_of(entry.shape[axis], sizes)
            if actual == wanted or (entry.spare and _suffices(axis, actual, wanted)):
                continue
            if entry.lone and axis == 0 and actual == 1:
                continue
            source = f"; {origin[size]!r} says {size} = {wanted}" if isinstance(size, str) else ""
            raise ShapeError(
                f"the input {entry.name!r} is declared {declared}, and has the shape {given}: "
                f"its size {axis} must be {wanted}{' or more' if entry.spare and axis > 1 else ''}{source}"
            )

    @property
    def batch_names(self) -> frozenset[str]:
        """The first sizes that are names."""
        given = (entry for entry in self.entries if not tells_size(entry.name))
        return frozenset(size for entry in given for size in entry.sizes[:1] if isinstance(size, str))

    @property
    def names(self) -> frozenset[str]:
        """All named sizes."""
        return frozenset(s for entry in self.entries for d in entry.shape if isinstance(d, Dim) for s in d.symbols())

    def example(self, batch: int, length: int) -> dict[str, Tensor]:
        """Inputs of the sizes asked for: zeros, integers where ids are read, True where masks are."""
        return self.example_of({name: batch if name in self.batch_names else length for name in self.names})

    def example_of(self, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """The same where each named size has its own number."""
        return {
            entry.name: torch.full(
                [size_of(size, sizes) for size in entry.shape],
                entry.dtype is torch.bool,
                dtype=entry.dtype or torch.get_default_dtype(),
            )
            for entry in self.entries
            if not tells_size(entry.name)
        }


def _uses(names: frozenset[str], lines: ModuleList) -> tuple[frozenset[str], frozenset[str], dict[str, torch.dtype]]:
    """The inputs that only spare places read, further ones that may be of batch size 1, and the types of those that
    are read as ids or masks.
    """
    exact: set[str] = set()
    whole: set[str] = set()
    read: set[str] = set()
    alive = set(names)
    for _, step in steps_of(lines):
        spare_places, lone_places = (step.op.spare, step.op.lone) if isinstance(step.op, Op) else ((), ())
        computed = any(name not in alive for name in step.takes)
        for place, name in enumerate(step.takes):
            if name in alive:
                read.add(name)
                if place not in spare_places:
                    exact.add(name)
                    if place not in lone_places or not computed:
                        whole.add(name)
        alive -= set(step.into)
    return frozenset(read - exact), frozenset(exact - whole), _types(lines)


def _types(lines: ModuleList) -> dict[str, torch.dtype]:
    """The types of what is read as ids or masks, seen from before the first line."""
    types: dict[str, torch.dtype] = {}
    for _, step in reversed(list(steps_of(lines))):
        later, *_ = [types.pop(name, None) for name in step.into]
        for place, name in enumerate(step.takes):
            dtype = input_type(step.op, name, place)
            if (
                dtype is None
                and later is torch.long
                and isinstance(step.op, Op)
                and _hands_on(step.op, place, step.takes)
            ):
                dtype = later
            if dtype is not None:
                types[name] = dtype
    return types


def _hands_on(op: Op, place: int, names: tuple[str, ...]) -> bool:
    """Whether ids come out where ids go in, and something else where something else goes in at this place."""
    ids = ["ids"] * len(names)
    other = [*ids[:place], "features", *ids[place + 1 :]]
    args = op.__dict__.get("_spec") and op.spec.args
    return args is not None and op.makes(args, tuple(ids))[0] == "ids" != op.makes(args, tuple(other))[0]


def _refuse_unnamed(inputs: Any, names: Sequence[str]) -> None:
    if not isinstance(inputs, Mapping):
        form = ", ".join(f"{name!r}: ..." for name in names)
        raise ShapeError(f"a program takes a dict of tensors by name, {{{form}}}, not a {type(inputs).__name__}")


def _plain(size: int | Dim) -> int | str | None:
    """A number, a name, or None for an expression of names."""
    if isinstance(size, int):
        return size
    text = str(size)
    return text if text.isidentifier() else None


def _bound(size: int | Dim, sizes: Mapping[str, int]) -> bool:
    return isinstance(size, int) or size.symbols() <= set(sizes)


def _told(size: int | Dim, sizes: Mapping[str, int], actual: int) -> tuple[str, int | None] | None:
    """The one name of a size such as `2*L - 1` that is not known yet, and its number for this actual size.

    The number is None where there is none; the whole is None for sizes of other forms.
    """
    unknown = size.symbols() - set(sizes) if isinstance(size, Dim) else frozenset()
    if not isinstance(size, Dim) or len(unknown) != 1:
        return None
    (name,) = unknown
    rest = size.at(dict(sizes))
    if not isinstance(rest, Dim):
        return None
    start = rest.at({name: 0})
    step = rest.at({name: 1}) - start
    if not isinstance(start, int) or not isinstance(step, int) or step < 1 or rest != step * Dim.symbol(name) + start:
        return None
    number, left = divmod(actual - start, step)
    return name, number if not left and number > 0 else None


def _suffices(axis: int, actual: int, wanted: int) -> bool:
    return actual == 1 if axis == 0 else axis > 1 and actual > wanted
