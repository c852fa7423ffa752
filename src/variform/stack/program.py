"""Programs: parts made of steps over named tensors, as a layer and as a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from variform.core.dims import Dim, Shape, parse_shape
from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts, Follower
from variform.core.registry import register
from variform.errors import ConfigError, Problem, did_you_mean
from variform.parts.kinds import Attention, Layer, Model, Op, Output, State, Streams
from variform.stack.admission import Admission, StreamError
from variform.stack.decodable import lines_abilities
from variform.stack.execute import ModuleList
from variform.stack.fuse import Fusion, fusing
from variform.stack.lacking import missing_streams
from variform.stack.line_state import layer_state
from variform.stack.lines import Line, fusions_of, plan, run
from variform.stack.program_state import begin_call, example_held, program_state, refuse_lost
from variform.stack.state import count_positions, turned
from variform.stack.table import Table
from variform.stack.trace import LineFollower, Trace, trace_lines
from variform.stack.unread import unread
from variform.stack.values import Value, input_values

Size = Annotated[int, Field(gt=0)]
Shapes = Mapping[str, tuple[int | str, ...]]

PROGRAM_STREAMS = ("valid", "segments", "mask", "positions")


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
        attention: "fused": scores that end in one weighted sum run with it as one attention, and results that are cheap
            to make anew are not kept for the backward pass; "literal": every line is computed, and kept, as it stands.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        dim: Size = INHERIT,
        streams: Shapes | None = None,
        output: str = "x",
        attention: Literal["fused", "literal"] = "fused",
    ) -> None:
        super().__init__()
        self.lines = ModuleList(lines)
        self.declared = tuple(streams or ())
        self.reads = frozenset(self.declared)  # type: ignore[misc]  # of this program, not of the class
        self.output = output
        self.stages, _ = plan(self.lines, frozenset({output}), fuse=attention == "fused")

    pairwise: ClassVar[bool] = True
    """Its lines say what becomes of streams with a number for each pair of tokens, where it decodes."""

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
        return lines_abilities(args["lines"])

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The declared streams."""
        return frozenset(args.get("streams") or ())

    @classmethod
    def in_streams(cls, args: Facts) -> dict[str, Shape]:
        """The declared streams."""
        return {name: parse_shape(sizes) for name, sizes in (args.get("streams") or {}).items()}

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run the lines."""
        refuse_lost(
            self.lines, {name: streams.get(name) for name in PROGRAM_STREAMS if name not in self.declared}, streams
        )
        state = streams.get("state")
        held: State = {} if state is None else state.get("held", {})
        values = {"x": x}
        for name in self.declared:
            value = held.get(name) if streams.get(name) is None else streams[name]
            if value is None:
                raise StreamError(f"the program reads the stream {name!r}, and it was not given")
            values[name] = value
        published: State = {} if state is None else {"state": {"held": held} if held else {}}
        with fusing():
            run(self.lines, self.stages, values, streams, published)
        out = values[self.output]
        return (out, published) if published else out

    @property
    def fusions(self) -> tuple[Fusion, ...]:
        """For each line that asks for attention scores, whether they run fused with their weighted sum, or why not."""
        return tuple(fusions_of(self.stages))

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Its lines are followed before it decodes, whether they keep something or not."""
        return True

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Decode state of the lines, by place, and the declared streams that stay the same."""
        return layer_state(self, self.lines, _layer_shapes(self.spec.args), batch, max_len, streams)


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
        unasked: outputs that are given back for the sole reason that nothing reads them; `diagnostics` lists them.
        executor: "plain", or "checkpoint": blocks are recomputed in the backward pass (arXiv:1604.06174).
        attention: "fused": scores that end in one weighted sum run with it as one attention, and results that are cheap
            to make anew are not kept for the backward pass; "literal": every line is computed, and kept, as it stands.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        inputs: Shapes,
        outputs: tuple[str, ...] = ("x",),
        strict: bool = True,
        executor: Literal["plain", "checkpoint"] = "plain",
        attention: Literal["fused", "literal"] = "fused",
        unasked: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.lines = ModuleList(lines)
        self.outputs = outputs
        self.executor = executor
        self.stages, self.needed = plan(self.lines, frozenset(outputs), fuse=attention == "fused")
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
        found = _unread(facts, trace, values) if facts["strict"] else []
        found += missing_streams(trace.rows)
        for name in facts["outputs"]:
            if name not in trace.values:
                hint = did_you_mean(name, trace.values)
                found.append(Problem("outputs", f"no line writes the output {name!r}", hint=hint))
        return found

    @classmethod
    def notes(cls, facts: Facts) -> list[Problem]:
        """Inputs and writes that nothing reads."""
        values = _model_values(facts)
        return _unread(facts, trace_lines(facts["lines"], values), values)

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What all steps can do."""
        return lines_abilities(args["lines"])

    @property
    def table(self) -> Table:
        """The lines with the shapes of all that they read and write; `str` of it is readable."""
        spec = self.spec
        return Table(tuple(trace_lines(spec["lines"], _model_values(spec.args)).rows))

    @property
    def diagnostics(self) -> tuple[Problem, ...]:
        """Inputs and writes that nothing reads."""
        return tuple(self.notes(self.spec.args))

    @property
    def fusions(self) -> tuple[Fusion, ...]:
        """For each line that asks for attention scores, whether they run fused with their weighted sum, or why not."""
        return tuple(fusions_of(self.stages))

    def forward(self, inputs: Mapping[str, Tensor], *, valid: Tensor | None = None, state: State | None = None) -> Any:
        """Run the lines. The dict that comes in is left alone.

        Args:
            inputs: by name; with a state, those that it does not hold, for the next tokens.
            valid: [B, L] bool, False at padding.
            state: decode state of `init_state` or the call before; the result is then (outputs, new state).

        Raises:
            StreamError: an input is missing or not declared; it is a KeyError too.
            ShapeError: an input does not have its declared shape, or two disagree on a named size.
        """
        streams: Streams = {} if valid is None else {"valid": valid, "positions": count_positions(valid, None)}
        given, planned = inputs, None
        new: State = {}
        if state is not None:
            given, streams, planned = begin_call(self, self.admission, inputs, valid, state)
        else:
            told = self.admission.check(inputs)
            given = {**inputs, **told}
            refuse_lost(self.lines, {"valid": valid}, streams, (Op, Attention))
        values = {name: given[name] for name in self.needed}
        recompute = self.executor == "checkpoint" and torch.is_grad_enabled()
        with fusing():
            run(self.lines, self.stages, values, streams, new, recompute)
        out = {name: values[name] for name in self.outputs}
        if planned is None or state is None:
            return out
        return out, {**planned.state, **turned(state), "parts": new.get("state", {})}

    def example_inputs(self, batch: int, length: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """One dict of inputs: first sizes that are names are `batch`, all other names `length`."""
        if length is None:
            raise ConfigError("a program has no longest length: give length, the size of its other names")
        return (self.admission.example(batch, length),), {}

    def init_state(self, batch: int, max_len: int | None = None, *, bucket: int = 0, **streams: Any) -> State:
        """Empty decode state.

        Args:
            batch: rows.
            max_len: capacity in tokens.
            bucket: round the attended length up to a multiple of it (for compiled steps); 0 is exact.
            **streams: the inputs that stay the same while decoding, and are not given again; among them whole offsets
                of attention scores, [1 or B, H, max_len or more, max_len or more].

        Raises:
            ConfigError: lines that cannot decode, each named; an input that does not belong there.
            ShapeError: an input that does not fit.
        """
        if max_len is None:
            raise ConfigError("a program has no longest length: give max_len, the most tokens a row will hold")
        return program_state(self, self.lines, self.admission, batch, max_len, bucket, streams)

    def example_state(self, batch: int, max_len: int | None = None) -> State:
        """Empty decode state with example inputs: offsets that mask the future."""
        refused: list[ConfigError] = []
        for held in example_held(self.admission, batch, max_len or 1):
            try:
                return self.init_state(batch, max_len, bucket=0, **held)
            except ConfigError as error:  # the tokens may come in another input
                refused.append(error)
        raise refused[0] if refused else ConfigError("no input of the program has a length")


def _layer_shapes(facts: Facts) -> dict[str, Shape]:
    x: Shape = (Dim.symbol("B"), Dim.symbol("L"), facts["dim"])
    return {"x": x, **{name: parse_shape(sizes) for name, sizes in (facts.get("streams") or {}).items()}}


def _layer_values(facts: Facts) -> dict[str, Value]:
    return input_values(_layer_shapes(facts))


def _model_values(facts: Facts) -> dict[str, Value]:
    return input_values({name: parse_shape(sizes) for name, sizes in facts["inputs"].items()})


def _unread(facts: Facts, trace: Trace, values: Mapping[str, Value]) -> list[Problem]:
    asked = [name for name in facts["outputs"] if name not in facts["unasked"]]
    return unread(trace.rows, values, asked)
