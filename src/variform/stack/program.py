"""Programs: parts made of steps over named tensors, as a layer and as a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from variform.core.dims import Dim, Shape, parse_shape
from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts, Follower
from variform.core.registry import register
from variform.errors import ConfigError, Problem, ShapeError, did_you_mean
from variform.parts.kinds import Layer, Model, Op, Output, State, Streams
from variform.stack.admission import Admission, StreamError
from variform.stack.execute import ModuleList
from variform.stack.lines import Block, Line, lines_state, plan, run, steps_of
from variform.stack.table import Table
from variform.stack.trace import LineFollower, Trace, trace_lines, unshared
from variform.stack.unread import unread
from variform.stack.values import Value, input_values

Size = Annotated[int, Field(gt=0)]
Shapes = Mapping[str, tuple[int | str, ...]]

_PROGRAM_STREAMS = ("valid", "segments", "mask", "positions")


@register("program")
class Program(Layer):
    """A layer written as steps over named tensors; every shape is inferred, and checked, before it is built.

    It starts with `x` and the streams it declares; names end with it. What it keeps alive is what a later step
    reads. Steps of kind op know nothing of padding, masks, documents or given positions: where these are given,
    programs with such steps refuse them, unless a declared stream brings them in.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        lines: steps and blocks, in order.
        dim: features.
        streams: streams that the lines read beside `x`, with their shapes: sizes are numbers, names (`B`, `L` are
            those of `x`), or expressions of names.
        output: which name is the result.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        dim: Size = INHERIT,
        streams: Shapes | None = None,
        output: str = "x",
    ) -> None:
        super().__init__()
        self.lines = ModuleList(lines)
        self.declared = tuple(streams or ())
        self.reads = frozenset(self.declared)  # type: ignore[misc]  # of this program, not of the class
        self.output = output
        self.stages, _ = plan(self.lines, frozenset({output}))

    @classmethod
    def follow(cls, slot: str, facts: Facts) -> Follower:
        """Shapes go from line to line."""
        return LineFollower(Trace(_layer_values(facts)))

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The result has the shape of `x`; nothing is written in vain."""
        values = _layer_values(facts)
        trace = trace_lines(facts["lines"], values)
        found = [p for p in unread(trace.rows, values, (facts["output"],)) if p.path != "inputs.x"]
        result = trace.values.get(facts["output"])
        if result is None:
            hint = did_you_mean(facts["output"], trace.values)
            found.append(Problem("output", "no line writes the result", facts["output"], hint))
        elif result.shape != values["x"].shape:
            message = f"a layer gives back {values['x']}, and {facts['output']!r} is {result}"
            found.append(Problem("output", message))
        return found

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What all steps can do."""
        return _abilities(args["lines"])

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The declared streams."""
        return frozenset(args.get("streams") or ())

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run the lines."""
        self._refuse(streams)
        values = {"x": x}
        for name in self.declared:
            if streams.get(name) is None:
                raise StreamError(f"the program reads the stream {name!r}, and it was not given")
            values[name] = streams[name]
        published: State = {}
        run(self.lines, self.stages, values, streams, published)
        out = values[self.output]
        return (out, published) if published else out

    def _refuse(self, streams: Streams) -> None:
        given = [name for name in _PROGRAM_STREAMS if streams.get(name) is not None and name not in self.declared]
        if not given or streams.get("state") is not None:
            return
        for slot, step in steps_of(self.lines):
            op = step.op
            if not isinstance(op, Op):
                continue
            able = {"valid": op.can.key_padding, "segments": op.can.packed, "mask": op.can.attention_mask}
            lost = [name for name in given if not able.get(name, not op.ordered)]
            if lost:
                raise ShapeError(
                    f"{' and '.join(lost)} given, and the step {slot} ({op.name!r}) of a program cannot honour it"
                )

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Decode state of the parts among the steps, by place."""
        return lines_state(self.lines, batch, max_len, streams)


@register("program")
class ProgramModel(Model):
    """A whole model written as steps over named tensors: a dict of tensors in, a dict of tensors out.

    Shapes:
        inputs: as declared
        returns: the outputs by name

    Args:
        lines: steps and blocks, in order.
        inputs: the shapes of the inputs by name: numbers, names, or expressions of names. A name has one size in
            all inputs of a call. What only offsets of attention scores read may be larger, and of batch size 1.
        outputs: the names that are given back.
        strict: refuse inputs and writes that nothing reads; else they are listed in `diagnostics`.
        executor: "plain", or "checkpoint": blocks are recomputed in the backward pass (arXiv:1604.06174).
    """

    def __init__(
        self,
        lines: Sequence[Line],
        inputs: Shapes,
        outputs: tuple[str, ...] = ("x",),
        strict: bool = True,
        executor: Literal["plain", "checkpoint"] = "plain",
    ) -> None:
        super().__init__()
        self.lines = ModuleList(lines)
        self.outputs = outputs
        self.executor = executor
        self.stages, self.needed = plan(self.lines, frozenset(outputs))
        self.admission = Admission({name: parse_shape(sizes) for name, sizes in inputs.items()}, self.lines)

    @classmethod
    def follow(cls, slot: str, facts: Facts) -> Follower:
        """Shapes go from line to line."""
        return LineFollower(Trace(_model_values(facts)))

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """All outputs are written; nothing is written in vain."""
        values = _model_values(facts)
        trace = trace_lines(facts["lines"], values)
        found = unread(trace.rows, values, facts["outputs"]) if facts["strict"] else []
        for name in facts["outputs"]:
            if name not in trace.values:
                hint = did_you_mean(name, trace.values)
                found.append(Problem("outputs", f"no line writes the output {name!r}", hint=hint))
        return found

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What all steps can do."""
        return _abilities(args["lines"])

    @property
    def table(self) -> Table:
        """The lines with the shapes of all that they read and write; `str` of it is readable."""
        spec = self.spec
        return Table(tuple(trace_lines(spec["lines"], _model_values(spec.args)).rows))

    @property
    def diagnostics(self) -> tuple[Problem, ...]:
        """Inputs and writes that nothing reads."""
        spec = self.spec
        values = _model_values(spec.args)
        return tuple(unread(trace_lines(spec["lines"], values).rows, values, self.outputs))

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the lines. The dict that comes in is left alone.

        Raises:
            StreamError: an input is missing or not declared; it is a KeyError too.
            ShapeError: an input does not have its declared shape, or two disagree on a named size.
        """
        self.admission.check(inputs)
        values = {name: inputs[name] for name in self.needed}
        recompute = self.executor == "checkpoint" and torch.is_grad_enabled()
        run(self.lines, self.stages, values, {}, {}, recompute)
        return {name: values[name] for name in self.outputs}

    def example_inputs(self, batch: int, length: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """One dict of inputs: first sizes that are names are `batch`, all other names `length`."""
        if length is None:
            raise ConfigError("a program has no longest length: give length, the size of its other names")
        return (self.admission.example(batch, length),), {}

    def init_state(self, batch: int, max_len: int | None = None, *, bucket: int = 0, **streams: Any) -> State:
        """Programs do not decode step by step.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a model that is a program has no decode state: call it with the whole sequence")


def _layer_values(facts: Facts) -> dict[str, Value]:
    x: Shape = (Dim.symbol("B"), Dim.symbol("L"), facts["dim"])
    declared = {name: parse_shape(sizes) for name, sizes in (facts.get("streams") or {}).items()}
    return input_values({"x": x, **declared})


def _model_values(facts: Facts) -> dict[str, Value]:
    return input_values({name: parse_shape(sizes) for name, sizes in facts["inputs"].items()})


def _abilities(lines: tuple[Any, ...]) -> Can:
    can = Can()
    for line in lines:
        spec = unshared(line)
        op = None if spec is None else unshared(spec.get("op"))
        if op is not None:
            can = can & op.part.abilities(op.args)
        elif spec is not None and spec.part is Block:
            can = can & _abilities(spec["lines"])
    return can
