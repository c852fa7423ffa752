"""The lines of a program: single steps and blocks of them, and how they run over named tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from variform.core.part import Facts, Follower, Part
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.parts.kinds import (
    Attention,
    Bias,
    Embedding,
    FeedForward,
    Head,
    Layer,
    Mixer,
    Norm,
    Op,
    Position,
    Residual,
    Rotation,
    Stack,
    State,
    Streams,
)
from variform.stack.adapt import ADAPTERS, apply
from variform.stack.execute import ModuleList
from variform.stack.fuse import Fusion, Place, cheap, fusions, postponed

Names = tuple[str, ...]
Values = dict[str, Tensor]


class Line(Part):
    """What a program is a list of."""

    kind: ClassVar[str] = "line"


@register("step")
class Step(Line):
    """Applies one part to named tensors and names what comes out.

    An op takes all that is read and gives all that is written. Other parts take what their kind does first (`x`; ids
    or images for an embedding; `x` and a branch for a residual; q, k and v for an attention; see `stack.adapt`), and
    further names reach them as streams. A norm normalises the first name; a second one is its condition. Streams that
    a part publishes are named after its result.

    Args:
        op: the part.
        reads: names of its inputs, in order.
        into: names of its outputs, in order; a name may be written anew.
        label: what tables call the step; the part's name when empty.
    """

    def __init__(
        self,
        op: Op
        | Layer
        | Mixer
        | FeedForward
        | Norm
        | Stack
        | Embedding
        | Head
        | Residual
        | Position
        | Rotation
        | Attention
        | Bias,
        reads: tuple[str, ...] = ("x",),
        into: tuple[str, ...] = ("x",),
        label: str = "",
    ) -> None:
        super().__init__()
        self.op = op
        self.takes = reads
        self.into = into

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """A step reads and writes something, and no name twice at once."""
        found = []
        if not facts["reads"]:
            found.append(Problem("reads", "a step reads at least one stream"))
        if not facts["into"] or len(set(facts["into"])) < len(facts["into"]):
            found.append(Problem("into", "a step writes at least one stream, and none twice", facts["into"]))
        return found

    @classmethod
    def names_streams(cls, args: Facts) -> frozenset[str]:
        """What it reads beyond the part's own inputs."""
        op = described(args.get("op"))
        mains = ADAPTERS[op.kind].mains if isinstance(op, Spec) and op.kind in ADAPTERS else 0
        return frozenset(args.get("reads", ("x",))[mains:])

    def forward(
        self, inputs: Sequence[Tensor], streams: Streams, slot: str, published: State, late: bool = False
    ) -> tuple[Any, ...]:
        """Apply the part.

        Args:
            inputs: the tensors read, in order.
            streams: side inputs of the program as a whole.
            slot: the name of this place, for decode state.
            published: where new decode state goes; changed in place.
            late: give what stands in for the result, where that can be; see `stack.fuse`.
        """
        if late and streams.get("state") is None:
            instead = postponed(self.op, inputs)
            if instead is not None:
                return (instead,)
        branch = None if streams.get("state") is None else streams["state"].get(slot)
        if branch is not None and ("held" in branch or isinstance(self.op, (Op, Bias, Attention))):
            return self._next(tuple(inputs), branch, streams, slot, published)
        if isinstance(self.op, Op):
            out = self.op(*inputs)
            return out if isinstance(out, tuple) else (out,)
        return apply(self.op, self.takes, inputs, self.into, streams, slot, published)

    def _next(
        self, inputs: tuple[Tensor, ...], branch: State, streams: Streams, slot: str, published: State
    ) -> tuple[Tensor, ...]:
        """Apply the part to a chunk of tokens; what does not depend on them is in the state already."""
        branches = published.setdefault("state", {})
        branches[slot] = branch
        if "held" in branch:
            kept: tuple[Tensor, ...] = branch["held"]
            return kept
        if isinstance(self.op, Op):
            outputs, branches[slot] = self.op.step(inputs, branch, streams)
            return outputs
        if isinstance(self.op, Bias):
            more = {"q_positions": streams["positions"], "k_positions": streams["cache"]["positions"]}
        else:  # keys that stay the same have neither the positions nor the padding of the chunk
            more = {} if branch else dict.fromkeys(("positions", "valid", "segments", "cache", "state"))
        return apply(self.op, self.takes, inputs, self.into, {**streams, **more}, slot, published)


@register("block")
class Block(Line):
    """Lines that belong together: what is repeated, shown under one heading, or recomputed together.

    Its lines read and write the program's own names.

    Args:
        lines: steps and blocks, in order.
        label: the heading; copies of a block have the same.
    """

    def __init__(self, lines: Sequence[Line], label: str = "") -> None:
        super().__init__()
        self.lines = ModuleList(lines)

    @classmethod
    def follow(cls, slot: str, facts: Facts) -> Follower | None:
        """The program around it follows the lines."""
        inner: Follower | None = facts.get("block_follower")
        return inner

    def forward(self, values: Values, stage: Stage, streams: Streams, published: State) -> Values:
        """Run the lines.

        Args:
            values: the tensors the block needs, by name; the dict is the block's own, and it frees what is dead.
            stage: the plan of the block at this place.
            streams: side inputs of the program as a whole.
            published: where new decode state goes.
        """
        run(self.lines, stage.inner, values, streams, published)
        return {name: values[name] for name in stage.gives}


@dataclass(frozen=True)
class Stage:
    """What one line does at its place in a program.

    Args:
        slot: the name of the place.
        takes: names it needs, in reading order for a step.
        gives: names that are written and needed later.
        drops: names that nothing needs after it.
        inner: the lines of a block.
        fusion: what becomes of the attention scores that it asks for.
        late: its result need not be computed, or kept, where it stands.
    """

    slot: str
    takes: Names
    gives: Names
    drops: Names
    inner: tuple[Stage, ...] = ()
    fusion: Fusion | None = None
    late: bool = False


def plan(
    lines: ModuleList, keep: frozenset[str], prefix: str = "", fuse: bool = False
) -> tuple[tuple[Stage, ...], frozenset[str]]:
    """Liveness: which names each line needs, gives and frees; and the names needed before the first line.

    Args:
        lines: in order.
        keep: names that are needed after the last line.
        prefix: of the places' names.
        fuse: postpone what can be fused; see `variform.stack.fuse`.
    """
    stages: list[Stage] = []
    live = keep
    for place, line in reversed(list(enumerate(lines.in_order()))):
        slot = f"{prefix}lines.{place}"
        written = names_written(line)
        inner: tuple[Stage, ...] = ()
        if isinstance(line, Block):
            inner, needs = plan(line.lines, live & written, f"{slot}.", fuse)
            takes = tuple(sorted(needs))
        else:
            assert isinstance(line, Step)
            takes = line.takes
            needs = frozenset(takes)
        after = live - written
        order = line.into if isinstance(line, Step) else sorted(written)
        gives = tuple(name for name in order if name in live)
        stages.append(Stage(slot, takes, gives, tuple(sorted(needs - after)), inner))
        live = after | needs
    return _with_fusions(lines, stages[::-1], keep, fuse), live


def _with_fusions(lines: ModuleList, stages: list[Stage], keep: frozenset[str], fuse: bool) -> tuple[Stage, ...]:
    places = [
        Place(stage.slot, stage.takes, tuple(names_written(line)), line.op if isinstance(line, Step) else None)
        for line, stage in zip(lines.in_order(), stages, strict=True)
    ]
    found = fusions(places, keep)
    if not fuse:
        found = {place: Fusion(fusion.scores, why="the program is to be literal") for place, fusion in found.items()}
    late = {place for place, fusion in found.items() if fusion.sum} | cheap(places, keep) if fuse else ()
    return tuple(
        replace(stage, fusion=found.get(place), late=place in late) if place in found or place in late else stage
        for place, stage in enumerate(stages)
    )


def run(
    lines: ModuleList,
    stages: tuple[Stage, ...],
    values: Values,
    streams: Streams,
    published: State,
    recompute: bool = False,
) -> None:
    """Run lines over named tensors.

    Args:
        lines: in order.
        stages: their plan.
        values: the tensors by name; new ones are put in, dead ones taken out.
        streams: side inputs of the program as a whole.
        published: where new decode state goes.
        recompute: run blocks anew in the backward pass instead of keeping their activations.
    """
    for line, stage in zip(lines.in_order(), stages, strict=True):
        if isinstance(line, Block):
            taken = {name: values[name] for name in stage.takes}
            _drop(values, stage.drops)
            if recompute:
                out, new = checkpoint(_afresh, line, taken, stage, streams, use_reentrant=False)
                values.update(out)
                if new:
                    published.setdefault("state", {}).update(new["state"])
            else:
                values.update(line(taken, stage, streams, published))
            del taken
        else:
            inputs = [values[name] for name in stage.takes]
            _drop(values, stage.drops)
            outputs = line(inputs, streams, stage.slot, published, stage.late)
            for name, value in zip(line.into, outputs, strict=True):  # type: ignore[arg-type]
                if name in stage.gives:
                    values[name] = value
            del inputs, outputs, value  # or they would outlive their last reader


def _afresh(block: Block, values: Values, stage: Stage, streams: Streams) -> tuple[Values, State]:
    """A block frees what it is given; the copy is what a second run starts from."""
    new: State = {}
    return block(dict(values), stage, streams, new), new


def _drop(values: Values, names: Names) -> None:
    for name in names:
        del values[name]


def names_written(line: Any) -> frozenset[str]:
    """All names that a line writes."""
    if isinstance(line, Block):
        return frozenset().union(*(names_written(inner) for inner in line.lines.in_order()))
    return frozenset(line.into)


def fusions_of(stages: tuple[Stage, ...]) -> Iterator[Fusion]:
    """What becomes of the attention scores of lines, in order."""
    for stage in stages:
        if stage.fusion is not None:
            yield stage.fusion
        yield from fusions_of(stage.inner)


def steps_of(lines: ModuleList, prefix: str = "") -> Iterator[tuple[str, Step]]:
    """All steps in the order in which they run, with the names of their places."""
    for place, line in enumerate(lines.in_order()):
        slot = f"{prefix}lines.{place}"
        if isinstance(line, Block):
            yield from steps_of(line.lines, f"{slot}.")
        else:
            assert isinstance(line, Step)
            yield slot, line
