"""Collecting the lines of a program, with the place in the model where each line's weights are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from variform.core.spec import Shared, Spec
from variform.stack.lines import Block, Step


@dataclass(frozen=True)
class Place:
    """A place in a model.

    Args:
        path: the prefix of its names in the model's state dict.
        shared: the name of the shared part around it, if there is one.
        within: the path from that part.
    """

    path: str = ""
    shared: str = ""
    within: str = ""

    def down(self, step: str) -> Place:
        """The place of a field, or of an item of a list (`layers.3`)."""
        return replace(self, path=_join(self.path, step), within=_join(self.within, step))

    def child(self, step: str, value: Any) -> tuple[Spec, Place]:
        """What stands in a field, described, and its place."""
        place = self.down(step)
        if isinstance(value, Shared):
            assert value.spec is not None
            return value.spec, replace(place, shared=value.name, within="")
        return value, place

    def items(self, field: str, values: Sequence[Any]) -> Iterator[tuple[Spec, Place]]:
        """What stands in a list. A shared part has the number of its first place there."""
        first: dict[str, int] = {}
        count = 0
        for value in values:
            index = count
            if isinstance(value, Shared):
                index = first.setdefault(value.name, count)
            count += index == count
            yield self.child(f"{field}.{index}", value)


@dataclass
class Writer:
    """The blocks of a program.

    Args:
        label: what the tables call a step with a part.
        prefixes: places among the program's modules, with those of the same weights in the model.
        streams: the streams that there are at this point, beside `x`.
        closed: shared parts that must stay one step, since a part that stays one step holds them too.
        opened: shared parts that were taken apart.
    """

    label: Callable[[Spec], str]
    prefixes: list[tuple[str, str]] = field(default_factory=list)
    streams: set[str] = field(default_factory=set)
    closed: frozenset[str] = frozenset()
    opened: set[str] = field(default_factory=set)
    _blocks: list[list[Spec]] = field(default_factory=list)

    def block(self) -> None:
        """Begin a new block."""
        if not self._blocks or self._blocks[-1]:
            self._blocks.append([])

    def step(
        self,
        op: Spec,
        reads: Sequence[str] = ("x",),
        into: Sequence[str] = ("x",),
        place: Place | None = None,
        weights: Mapping[str, str] | None = None,
    ) -> None:
        """Append a step.

        Args:
            op: its part.
            reads: names read.
            into: names written.
            place: where the part, or the part that it is cut from, is in the model; None for a part without weights.
            weights: names below the step's part, and below `place`, where these are not the same.
        """
        block = self._blocks[-1]
        part: Spec | Shared = op
        if place is not None:
            pairs = {"": ""} if weights is None else weights
            here = f"lines.{len(self._blocks) - 1}.lines.{len(block)}.op"
            self.prefixes += [(_join(here, below), _join(place.path, source)) for below, source in pairs.items()]
            if place.shared:
                part = Shared(".".join(filter(None, (place.shared, place.within, *pairs.values()))), op)
        block.append(Step.spec(op=part, reads=tuple(reads), into=tuple(into), label=self.label(op)))

    def opens(self, place: Place) -> bool:
        """Whether the part at a place may be taken apart; it is then taken note that it is."""
        if not place.shared:
            return True
        if place.shared in self.closed:
            return False
        self.opened.add(place.shared)
        return True

    def lines(self) -> list[Spec]:
        """The blocks; equal ones that follow one another have one heading."""
        found: list[Spec] = []
        labels = 0
        for index, steps in enumerate(filter(None, self._blocks)):
            labels += index == 0 or steps != self._blocks[index - 1]
            found.append(Block.spec(lines=steps, label=f"Block #{labels}"))
        return found


def _join(path: str, step: str) -> str:
    return f"{path}.{step}" if path and step else path or step
