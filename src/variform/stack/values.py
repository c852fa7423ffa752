"""The named tensors of a program before it runs: their shapes, what they hold, and which line says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from variform.core.dims import Shape, shape_text
from variform.core.spec import Spec
from variform.parts.kinds import CONTENTS, Embedding, Op
from variform.parts.op.tokenwise import CopyOp
from variform.stack.adapt import ADAPTERS, ANY, FEATURES, STREAM_CONTENTS

Contents = frozenset[str]

OPEN: Contents = frozenset(CONTENTS)

SIZE = "#"
"""First character of an input that only tells a named size: `#L_in`, of shape (L_in,). No caller gives it: a program
makes it from its other inputs, so that a line can use the size whatever has become of them."""


def tells_size(name: str) -> bool:
    """Whether a name is that of a size."""
    return name.startswith(SIZE)


@dataclass(frozen=True)
class Value:
    """A named tensor.

    Args:
        shape: its shape; None where a mistake left it open.
        where: the line that defined it.
        holds: what it holds, one of `CONTENTS`; "" while that is open.
        source: of an open one: the input that it is, perhaps under another name. Who reads it says what it holds.
    """

    shape: Shape | None
    where: str
    holds: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"{shape_text(self.shape or ())} from {self.where}"


def input_values(shapes: Mapping[str, Shape]) -> dict[str, Value]:
    """The named tensors that a program starts from."""
    return {name: Value(shape, "the inputs", source=name) for name, shape in shapes.items()}


@dataclass
class Uses:
    """What the inputs of a program can still hold, after all that read them so far.

    Args:
        known: contents by the name of the input, and the line that said so.
    """

    known: dict[str, tuple[Contents, str]] = field(default_factory=dict)

    def of(self, value: Value) -> Contents:
        """What a named tensor may hold."""
        if value.holds:
            return frozenset((value.holds,))
        return self.known[value.source][0] if value.source in self.known else OPEN

    def told(self, value: Value) -> str:
        """What a named tensor holds and who says so, in words."""
        if value.holds or value.source not in self.known:
            return f"holds {in_words(self.of(value))} from {value.where}"
        contents, where = self.known[value.source]
        return f"is the input {value.source!r}, and {where} reads it as {in_words(contents)}"

    def read(self, value: Value, wanted: Contents, where: str) -> None:
        """Take note that a line reads it as one of these."""
        if value.source and not value.holds:
            before = self.of(value)
            if not before <= wanted:
                self.known[value.source] = (before & wanted, where)


def in_words(contents: Contents) -> str:
    """Contents as a list: "features or heads", "anything but ids"."""
    if len(contents) > 2:
        lacking = [name for name in CONTENTS if name not in contents]
        return "anything" + (f" but {' or '.join(lacking)}" if lacking else "")
    return " or ".join(name for name in CONTENTS if name in contents)


def accepted(op: Spec, names: tuple[str, ...]) -> tuple[Contents, ...]:
    """What each tensor that a step reads may hold.

    Args:
        op: the part of the step.
        names: what it reads.
    """
    if issubclass(op.part, Op):
        given = op.part.accepts
        return tuple(
            given[place] if place < len(given) else frozenset({"ids"}) if place in op.part.ids else ANY
            for place in range(len(names))
        )
    if op.kind not in ADAPTERS:
        return (OPEN,) * len(names)
    adapter = ADAPTERS[op.kind]
    mains = (frozenset({op.part.takes(op.args)}),) if issubclass(op.part, Embedding) else adapter.accepts
    if op.kind == "norm":  # any name is that of the condition
        return (*mains, *(FEATURES,) * (len(names) - 1))
    streams = (frozenset({STREAM_CONTENTS.get(name, "")}) - {""} or OPEN for name in names[adapter.mains :])
    return (*mains, *streams)


def written(
    op: Spec, read: tuple[Value, ...], shapes: tuple[Shape, ...], names: tuple[str, ...], where: str
) -> list[Value]:
    """What a step writes.

    Args:
        op: the resolved part of the step.
        read: what it reads.
        shapes: of the results.
        names: of the results.
        where: the step, in words.
    """
    holds = tuple(value.holds for value in read)
    if issubclass(op.part, Op):
        made = op.part.makes(op.args, holds)
    else:
        made = ADAPTERS[op.kind].makes or holds[:1]
        made += tuple(STREAM_CONTENTS.get(name, "") for name in names[len(made) :])
    source = read[0].source if op.part is CopyOp else ""  # who reads the copy says what the input holds
    padded = (*made, *("",) * len(shapes))
    return [Value(shape, where, kind, "" if kind else source) for shape, kind in zip(shapes, padded, strict=False)]
