"""Decode state of programs: which lines keep something, what is computed once, and which lines cannot decode.

The lines are followed once with what is known of each name (`parts.flows`). Lines that read nothing of the tokens are
run then and there, and their results are kept; all others run anew with each chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.dims import Shape
from variform.core.part import Part
from variform.errors import ConfigError, Problem, ShapeError
from variform.parts.flows import FROM_END, Flow, each_token
from variform.parts.kinds import Attention, Bias, Op, Residual, State, StreamPart, Streams, holds_state
from variform.stack.adapt import output_shapes
from variform.stack.decodable import undecodable
from variform.stack.execute import ModuleList
from variform.stack.lines import Step, steps_of
from variform.stack.trace import trace_lines
from variform.stack.values import input_values

_SIDES = ("positions", "valid", "segments")
_HINT = "or run the whole sequence at once, without a state"


@dataclass
class Lines:
    """The lines of a program on the way to their decode state.

    Args:
        known: what is known of each name; None where a line before could not be followed.
        values: tensors that stay the same from call to call, and whole pairs, of which calls take their part; by name.
        batch: rows.
        max_len: the most tokens a row will hold.
        like: gives dtype and device of what is kept.
        state: what has been made so far, by place.
        problems: lines that cannot decode.
    """

    known: dict[str, Flow | None]
    values: dict[str, Tensor]
    batch: int
    max_len: int
    like: Tensor
    state: State = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def follow(self, slot: str, step: Step) -> None:
        """Go on by one step."""
        flows = [self.known[name] for name in step.takes]
        found: Sequence[Flow | None] = [None] * len(step.into)
        if None not in flows:
            try:
                found = self._results(slot, step, tuple(flow for flow in flows if flow is not None))
            except ConfigError as error:
                self.problems += [problem.below(f"{slot}.op") for problem in error.problems]
            except ShapeError as error:
                self.problems.append(Problem(slot, f"cannot decode step by step: {error}", hint=_HINT))
        for name in step.into:
            self.values.pop(name, None)
        self.known.update(zip(step.into, found, strict=True))
        if all(flow is not None and flow.held for flow in found):
            self.values.update(zip(step.into, self.state[slot]["held"], strict=True))

    def _results(self, slot: str, step: Step, inputs: tuple[Flow, ...]) -> Sequence[Flow]:
        op = step.op
        shapes = _shapes(step, tuple(flow.shape for flow in inputs))
        if all(flow.held for flow in inputs):
            outputs = step([self.values[name] for name in step.takes], {}, slot, {})
            self.state[slot] = {"held": outputs}
            return [Flow(shape, inputs[0].length) for shape in shapes]
        if not (isinstance(op, Attention) and inputs[1].held):  # an attention to what stays the same is not causal
            _refuse_undecodable(op)
        if isinstance(op, Op):
            found = op.flow(inputs, shapes)
            new = op.init_state(self.batch, self.max_len, self.like, inputs)
        else:
            found = _part_flow(step, inputs, shapes)
            new = self._part_state(step, inputs)
        if new is not None:
            self.state[slot] = new
        return found

    def _part_state(self, step: Step, inputs: tuple[Flow, ...]) -> State | None:
        op = step.op
        if isinstance(op, Bias):
            return {}
        if isinstance(op, Attention):
            if inputs[1].held:
                return {}
            if not op.stateful:
                return None
            (heads, dim), (dim_value,) = inputs[1].sizes(1, 3), inputs[2].sizes(3)
            return op.init_state(self.batch, self.max_len, self.like, heads, dim, dim_value)
        if isinstance(op, (StreamPart, Residual)) and holds_state(op):
            streams = {name: self.values[name] for name in step.takes[1:] if name in self.values}
            return op.init_state(self.batch, self.max_len, streams)
        return None


def lines_state(
    program: Part,
    lines: ModuleList,
    known: Mapping[str, Flow],
    values: Mapping[str, Tensor],
    batch: int,
    max_len: int,
    like: Tensor,
    outputs: Sequence[str],
) -> State:
    """Decode state of the lines of a program, by place.

    Args:
        program: the program.
        lines: in order.
        known: what the program starts from.
        values: those tensors of it that stay the same from call to call, and whole pairs.
        batch: rows.
        max_len: the most tokens a row will hold.
        like: gives dtype and device.
        outputs: the names that the program gives back.

    Raises:
        ConfigError: naming each line and output that cannot decode.
    """
    walk = Lines(dict(known), dict(values), batch, max_len, like)
    for slot, step in steps_of(lines):
        walk.follow(slot, step)
    for name in outputs:
        flow = walk.known[name]
        if flow is not None and flow.turned is not None:
            message = f"cannot decode step by step: the output {name!r} was rotated by {FROM_END}"
            walk.problems.append(Problem("outputs", message, hint=_HINT))
    if walk.problems:
        rows = trace_lines(program.spec["lines"], input_values({name: flow.shape for name, flow in known.items()})).rows
        where = {row.path: row.where for row in rows}
        raise ConfigError([_placed(problem, where) for problem in walk.problems])
    return walk.state


def _placed(problem: Problem, where: Mapping[str, str]) -> Problem:
    """A problem that says in words which line it is of."""
    line = next((path for path in where if problem.path == path or problem.path.startswith(f"{path}.")), None)
    return problem if line is None else replace(problem, message=f"{where[line]}: {problem.message}")


def template_flow(flow: Flow, value: Tensor) -> Flow:
    """What is known of pairs that are given whole: how far they mask the future.

    Shapes:
        value: [1 or B, H, M, M]
    """
    size = value.shape[-1]
    if size == 1 or type(value) not in (Tensor, nn.Parameter) or value.device.type == "meta":
        return replace(flow, mask=-torch.inf, zeroed=True)  # nothing lies ahead, or a stand-in without numbers
    past = torch.ones(size, size, dtype=torch.bool, device=value.device).tril()
    planes = value.detach().flatten(0, 1)  # one at a time: a template of many heads is large
    highest = max(float(plane.masked_fill(past, -torch.inf).max()) for plane in planes)
    lowest = min(float(plane.masked_fill(past, torch.inf).min()) for plane in planes)
    return replace(flow, mask=min(0.0, highest), zeroed=highest == lowest == 0.0)


def like_of(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """A tensor with the dtype and device that a model's state has: a parameter, or an input that it holds."""
    inputs = (value for value in given.values() if isinstance(value, Tensor))
    floats = (x.detach() for x in (*model.parameters(), *inputs) if x.is_floating_point())
    return next(floats, torch.zeros(()))


def part_of_chunk(template: Tensor, streams: Streams, batch: int) -> Tensor:
    """The rows of a chunk's tokens and the columns of all tokens so far.

    Shapes:
        template: [1 or B, H, M, M] -> [1 or B, H, L, slots]

    Args:
        template: pairs of positions.
        streams: `positions` of the chunk and the plan of the call, `cache`.
        batch: rows.
    """
    cache = streams["cache"]
    if not cache["moved"]:
        start, queries = cache["start"], streams["positions"].shape[-1]
        return template[:, :, start : start + queries, : cache["length"]]
    q, k = streams["positions"], cache["positions"]
    q, k = q.expand(batch, -1), k.expand(batch, -1)
    q, k = q.unsqueeze(2), k.unsqueeze(1)
    if template.shape[0] == 1:
        return template[0][:, q, k].transpose(0, 1)
    return template[torch.arange(batch, device=q.device)[:, None, None], :, q, k].permute(0, 3, 1, 2)


def _shapes(step: Step, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
    spec = step.op.spec
    if isinstance(step.op, Op):
        return step.op.shapes(spec.args, inputs)
    return output_shapes(spec, step.takes, inputs, step.into)


def _refuse_undecodable(part: Any) -> None:
    problems = undecodable(part.spec)
    if problems:
        raise ConfigError(problems)


def _part_flow(step: Step, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
    """Parts that are no ops work on rows of tokens, or on scores as a bias does; streams come with them."""
    op = step.op
    if isinstance(op, Bias):
        return (Flow(outputs[0], inputs[0].length, mask=inputs[0].mask),)
    keeps = isinstance(op, Attention) or holds_state(op)
    mains = 3 if isinstance(op, Attention) else 2 if isinstance(op, Residual) else 1
    for name in step.takes[mains:]:
        if keeps and (name in _SIDES or name[2:] in _SIDES):
            raise ShapeError(
                f"it keeps a state, and the positions and padding of a call come with that; not as {name!r}"
            )
    if getattr(op, "pairwise", False):  # a program: it follows its own lines with what it is given
        inputs = tuple(flow for flow in inputs if not flow.pairs)
    if isinstance(op, Attention):
        if inputs[1].held != inputs[2].held or not inputs[0].rows:
            raise ShapeError("queries are those of tokens; keys and values both, or neither")
        if inputs[0].turned == inputs[1].turned:
            inputs = (*(replace(flow, turned=None) for flow in inputs[:2]), *inputs[2:])
        inputs = tuple(flow for flow in inputs if not flow.pairs)
    return each_token(op, inputs, outputs)


def layer_state(
    layer: Part, lines: ModuleList, shapes: Mapping[str, Shape], batch: int, max_len: int, streams: Streams
) -> State:
    """Decode state of a program that is a layer: of its lines, and the streams that stay the same (`held`).

    Args:
        layer: the program.
        lines: its lines.
        shapes: of `x` and the declared streams.
        batch: rows.
        max_len: the most tokens a row will hold.
        streams: what stays the same, and whole pairs, among others.

    Raises:
        ConfigError: naming each line or stream that cannot decode.
    """
    known = {name: Flow(shape, "L") for name, shape in shapes.items()}
    held = {name: streams[name] for name, flow in known.items() if flow.held and streams.get(name) is not None}
    whole = {name: streams[name] for name, flow in known.items() if flow.pairs and streams.get(name) is not None}
    known.update({name: template_flow(known[name], value) for name, value in whole.items()})
    for name, flow in known.items():
        if name not in held and name not in whole and len(flow.along) != 1:
            why = "is not given where the state is made" if flow.held else "does not come token by token"
            raise ConfigError(f"cannot decode step by step: the stream {name!r} of the program {why}")
    state = lines_state(
        layer, lines, known, {**held, **whole}, batch, max_len, like_of(layer, held), (layer.spec["output"],)
    )
    return {**state, "held": held} if held else state
