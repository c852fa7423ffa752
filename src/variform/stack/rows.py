"""What is known of the lines of a program before it runs: the rows of its table, and the named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from variform.core.dims import Shape, shape_text
from variform.core.spec import Shared, Spec
from variform.stack.lines import Block, Step
from variform.stack.values import Uses, Value, tells_size


@dataclass(frozen=True)
class Row:
    """One step, with the shapes of what it reads and writes.

    Args:
        path: its place in the spec.
        block: the heading of its block.
        repeat: which copy of the block, from 1.
        line: which line of the block, from 1.
        name: what tables call it.
        reads: what it reads, constants included.
        writes: what it writes.
        op: the resolved part.
        holds: what each of the written ones holds, one of `CONTENTS`; "" where that is open.
    """

    path: str
    block: str
    repeat: int
    line: int
    name: str
    reads: tuple[tuple[str, Shape], ...]
    writes: tuple[tuple[str, Shape], ...]
    op: Spec
    holds: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The place in words."""
        return place_text(self.block, self.repeat, self.line, self.name)

    def __str__(self) -> str:
        reads = ", ".join(f"{name} {shape_text(shape)}" for name, shape in self.reads if not tells_size(name))
        writes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in self.writes)
        return f"{self.name} -> Input(s): {reads} - Output(s): {writes}"


@dataclass(frozen=True)
class Sound:
    """A block of steps that was followed to its end, without a mistake.

    Args:
        block: its description.
        resolved: the same with every size filled in.
        needs: the named tensors that it reads and that were there before it.
        rows: its steps.
    """

    block: Spec
    resolved: Spec
    needs: dict[str, Value]
    rows: tuple[Row, ...]

    def serves(self, values: dict[str, Value]) -> bool:
        """Whether a copy comes to the same here: what it reads is alike."""
        return all(name in values and _alike(value, values[name]) for name, value in self.needs.items())

    def again(self, path: str, repeat: int, values: dict[str, Value]) -> Iterator[Row]:
        """The rows of a copy; what they write is put into `values`."""
        for row in self.rows:
            copy = replace(row, path=f"{path}.lines.{row.line - 1}", repeat=repeat)
            for (name, shape), holds in zip(row.writes, row.holds, strict=True):
                values[name] = Value(shape, copy.where, holds)
            yield copy


def _alike(a: Value, b: Value) -> bool:
    """Whether two named tensors differ in nothing but the line that defined them."""
    return (a.shape, a.holds, a.source) == (b.shape, b.holds, b.source)


@dataclass
class Trace:
    """What is known of a program at one place, and the rows so far.

    Args:
        values: the named tensors.
        rows: the steps passed.
        copies: how often a heading has been met.
        broken: blocks with a problem, whose further copies are passed over, and whether a copy leaves the shapes of
            what it reads as they were.
        shared: the descriptions of shared lines met so far.
        uses: what the inputs can still hold.
        sound: blocks without a mistake, by the identity of their descriptions: copies need not be followed again.
    """

    values: dict[str, Value]
    rows: list[Row] = field(default_factory=list)
    copies: dict[str, int] = field(default_factory=dict)
    broken: list[tuple[Spec, bool]] = field(default_factory=list)
    shared: dict[str, Spec] = field(default_factory=dict)
    uses: Uses = field(default_factory=Uses)
    sound: dict[int, Sound] = field(default_factory=dict)

    def lose(self, line: Spec, where: str) -> None:
        """Take note that what a line writes has no known shape."""
        for name in written_names(line):
            self.values[name] = Value(None, where)

    def keep(self, block: Spec, resolved: Spec, entry: Mapping[str, Value], rows: Iterable[Row]) -> None:
        """Take note of a block that was followed to its end, if copies of it need not be followed again.

        Args:
            block: its description.
            resolved: the same, resolved.
            entry: the named tensors before it.
            rows: its steps.
        """
        steps = [unshared(line) for line in resolved["lines"]]
        needs: dict[str, Value] = {}
        own: set[str] = set()
        for step in steps:
            if step is None or step.part is not Step:
                return
            needs.update((name, entry[name]) for name in step["reads"] if name not in own)
            own.update(step["into"])
        if not any(self.values[name].source for name in own):  # the copy of an input that may hold anything still
            self.sound[id(block)] = Sound(block, resolved, needs, tuple(rows))


def unshared(part: Any) -> Spec | None:
    """The description of a part, shared or not; None where it stands elsewhere or is missing."""
    part = part.spec if isinstance(part, Shared) else part
    return part if isinstance(part, Spec) else None


def names_or_none(value: Any) -> tuple[Any, ...]:
    """Names as they are given; what is no tuple of them holds None."""
    return value if isinstance(value, tuple) else (None,)


def written_names(line: Spec) -> Iterator[str]:
    """All names that a line writes."""
    if line.part is Step:
        yield from (name for name in names_or_none(line.get("into")) if isinstance(name, str))
    for _, _, child in line.children() if line.part is Block else ():
        inner = child.spec if isinstance(child, Shared) else child
        if inner is not None:
            yield from written_names(inner)


def place_text(block: str, repeat: int, line: int, name: str) -> str:
    """A place in words: `Block #2, repeat 3, line 4 (linear)`."""
    copy = f", repeat {repeat}" if repeat > 1 else ""
    return f"{block}{copy}, line {line} ({name})" if block else f"line {line} ({name})"
