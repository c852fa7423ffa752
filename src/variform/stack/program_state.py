"""Decoding with a program that is a whole model: what comes with each call, what a state holds, and one call."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from variform.core.dims import Dim, Shape, shape_text
from variform.core.part import Part
from variform.errors import ConfigError, Problem, ShapeError, did_you_mean
from variform.parts.flows import Flow
from variform.parts.kinds import Op, State, Streams
from variform.stack.admission import Admission
from variform.stack.execute import ModuleList
from variform.stack.inputs import check_state_sizes, check_streams
from variform.stack.line_state import like_of, lines_state, part_of_chunk, template_flow
from variform.stack.lines import steps_of
from variform.stack.state import Plan, check_made_for, new_state, plan, signature
from variform.stack.values import tells_size


def program_state(
    model: Part,
    lines: ModuleList,
    admission: Admission,
    batch: int,
    max_len: int,
    bucket: int,
    given: Mapping[str, Any],
) -> State:
    """Empty decode state of a program.

    Args:
        model: the program.
        lines: its lines.
        admission: its inputs.
        batch: rows.
        max_len: the most tokens a row will hold.
        bucket: round the attended length up to a multiple of it; 0 is exact.
        given: the inputs that stay the same, by name.

    Raises:
        ConfigError: an input that belongs elsewhere, or lines that cannot decode.
        ShapeError: an input that does not fit.
    """
    check_state_sizes(batch, max_len, bucket)
    length = tokens_length(admission.shapes, given)
    like = like_of(model, given)
    known, held, templates = {}, {}, {}
    for name, shape in admission.shapes.items():
        known[name] = Flow(shape, length)
        if name in given:
            value = _fitting(name, known[name], given[name], max_len, like.device)
            if known[name].pairs:
                templates[name] = value
                known[name] = template_flow(known[name], value)
            else:
                held[name] = value
    first = next(shape[0] for name, shape in admission.shapes.items() if name not in given and not tells_size(name))
    sizes = {length: max_len, **({str(first): batch} if isinstance(first, Dim) else {})}
    wide = {  # one row may stand for all
        name: x.expand(batch, -1, -1, -1) if x.shape[0] == 1 and admission.shapes[name][0] != 1 else x
        for name, x in templates.items()
    }
    admission.check_held({**held, **wide}, sizes)
    parts = lines_state(model, lines, known, {**held, **templates}, batch, max_len, like, model.spec["outputs"])
    state = new_state(batch, max_len, like.device, parts, bucket)
    return {**state, "held": held, "templates": templates, "made_for": signature(model)}


def tokens_length(shapes: Mapping[str, Shape], held: Collection[str]) -> str:
    """The name of the length that the inputs which come with each call have.

    Args:
        shapes: of all inputs, by name.
        held: those that stay the same.

    Raises:
        ConfigError: there is no such length or several, or an input that must be held is not.
    """
    for name in held:
        if name not in shapes:
            raise ConfigError(f"{name!r} is no input of this program", hint=did_you_mean(name, shapes))
    free = {name: shape for name, shape in shapes.items() if name not in held and not tells_size(name)}
    second = {name: shape[1] for name, shape in free.items() if len(shape) > 1}
    lengths = {str(size): name for name, size in second.items() if isinstance(size, Dim) and str(size).isidentifier()}
    if not lengths:
        raise ConfigError(
            "a program decodes tokens that come in chunks, and no input that comes with each call has the shape "
            "[batch, length, ...] with a name for its length"
        )
    wrong = [
        Problem(name, f"{shape_text(shape)} does not come token by token", hint=f"hold it: init_state(..., {name}=...)")
        for name, shape in free.items()
        if Flow(shape, next(iter(lengths))).along != (1 - len(shape),)
    ]
    if wrong:
        raise ConfigError(wrong)
    return next(iter(lengths))


def begin_call(
    model: Part, admission: Admission, inputs: Mapping[str, Tensor], valid: Tensor | None, state: Any
) -> tuple[dict[str, Tensor], Streams, Plan]:
    """What a call with a state starts from: all inputs by name, the streams, and the plan.

    Raises:
        StreamError: an input is missing or not known.
        ShapeError: a state of another model or used up, or an input that does not fit it.
    """
    check_made_for(state, model)
    held, templates = state["held"], state["templates"]
    told = admission.check(inputs, frozenset((*held, *templates)))
    batch, length, *_ = next(iter(inputs.values())).shape
    if not length:
        raise ShapeError("the chunk is empty: at least one token is needed")
    if valid is not None:
        check_streams({"valid": valid}, batch, length, next(iter(inputs.values())).device, None)
    planned = plan(state, batch, length, None, valid, None)
    streams = {"positions": planned.positions, "cache": planned.cache, "valid": valid, "state": state["parts"]}
    now = {name: part_of_chunk(value, streams, batch) for name, value in templates.items()}
    return {**inputs, **held, **now, **told}, streams, planned


def _fitting(name: str, flow: Flow, value: Any, max_len: int, device: torch.device) -> Tensor:
    """A held input, cut to what a state of `max_len` tokens can need."""
    if not isinstance(value, Tensor):
        raise ShapeError(f"the input {name!r} must be a tensor, not a {type(value).__name__}")
    if value.device != device:
        raise ShapeError(f"{name} is on {value.device} and the model on {device}; move it: {name}.to({str(device)!r})")
    if flow.held:
        return value
    declared = shape_text(flow.shape)
    if not flow.pairs or len(flow.shape) != 4:
        raise ConfigError(
            f"the input {name!r}, declared {declared}, has the tokens' length: it comes with each call, not with the "
            "state (pairs of tokens, which are held whole, are [batch, heads, length, length])"
        )
    if value.dim() != 4:
        raise ShapeError(f"the input {name!r} is declared {declared}, and has the shape {list(value.shape)}")
    if min(value.shape[2:]) < max_len:
        raise ShapeError(
            f"{name!r} covers {list(value.shape[2:])} positions, and the state is to hold {max_len} tokens: make it "
            "longer, or take a smaller max_len"
        )
    return value[:, :, :max_len, :max_len]


def example_held(admission: Admission, batch: int, max_len: int) -> Iterator[dict[str, Tensor]]:
    """The inputs that a state may hold, of the sizes asked for, for each input that tokens may come in.

    Pairs mask the future.
    """
    second = (shape[1] for shape in admission.shapes.values() if len(shape) > 1)
    for length in dict.fromkeys(str(size) for size in second if isinstance(size, Dim)):
        yield _held_beside(admission, length, batch, max_len)


def _held_beside(admission: Admission, length: str, batch: int, max_len: int) -> dict[str, Tensor]:
    shapes, found = admission.shapes, {}
    for name, value in admission.example(batch, max_len).items():
        flow = Flow(shapes[name], length)
        if flow.pairs and value.is_floating_point():
            value = torch.full_like(value, -torch.inf).triu(1)
        if flow.along != (1 - len(flow.shape),):
            found[name] = value
    return found


def refuse_lost(
    lines: ModuleList, given: Mapping[str, Any], streams: Streams, kinds: tuple[type[Part], ...] = (Op,)
) -> None:
    """Refuse streams that steps would lose; where tokens come in chunks, padding and positions are known to all.

    Args:
        lines: of the program.
        given: the streams in question; None where one is not given.
        streams: all of the call.
        kinds: of the steps that are asked; the keys of an attention may be others than the tokens.

    Raises:
        ShapeError: naming the streams and the first step that cannot honour them.
    """
    known = ("valid", "positions") if streams.get("state") is not None else ()
    left = [name for name, value in given.items() if value is not None and name not in known]
    for slot, step in steps_of(lines) if left else ():
        op = step.op
        if not isinstance(op, kinds):
            continue
        whole = isinstance(op, Op)
        able = {"valid": whole and op.can.key_padding, "segments": op.can.packed, "mask": op.can.attention_mask}
        lost = [name for name in left if not able.get(name, not getattr(op, "ordered", False))]
        if lost:
            raise ShapeError(
                f"{' and '.join(lost)} given, and the step {slot} ({op.name!r}) of a program cannot honour it"
            )
