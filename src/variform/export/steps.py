"""One step of a program as statements."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from variform.core.dims import Shape
from variform.export.inline import inlined
from variform.export.known import Known
from variform.export.shake import ATTENTION, SCORES, Shaken, Unsupported
from variform.parts.kinds import Op
from variform.parts.op.cutting import CutOp
from variform.parts.op.heads import Offset, WeightedSum
from variform.stack.lines import Stage, Step
from variform.stack.values import tells_size


@dataclass
class Fused:
    """Steps that run as one attention.

    Args:
        scores: the step that asks for scores.
        offsets: what is added to them, in order: the step, and the name of the offset.
        factors: the learned factors of steps, as they are written.
        role: what the step at hand is in it: "scores", "offset" or "sum".
    """

    scores: Step
    offsets: list[tuple[Step, str]] = field(default_factory=list)
    factors: dict[Step, str] = field(default_factory=dict)
    role: str = ""


def fused_groups(modules: Sequence[Any], stages: Sequence[Stage]) -> dict[int, Fused]:
    """The steps of a list that run fused, by place."""
    found: dict[int, Fused] = {}
    for start, stage in enumerate(stages):
        if stage.fusion is None or not stage.fusion.sum or not stage.late:
            continue
        group = Fused(modules[start])
        (name,) = modules[start].into
        places, written = [start], set[str]()
        for place in range(start + 1, len(modules)):
            step = modules[place]
            if name in getattr(step, "takes", ()):
                places.append(place)
                if isinstance(step.op, WeightedSum):
                    break
                others = [other for other in step.takes if other != name]
                group.offsets.append((step, others[0]))
                (name,) = step.into
            else:
                written |= set(step.into) if isinstance(step, Step) else set()
        used = {*group.scores.takes, *(other for _, other in group.offsets)}
        if used & written:
            raise Unsupported(f"{', '.join(sorted(used & written))} is overwritten before the attention that reads it")
        roles = ["scores", *["offset"] * (len(places) - 2), "sum"]
        for place, role in zip(places, roles, strict=True):
            found[place] = Fused(group.scores, group.offsets, group.factors, role)
    return found


def step_value(
    step: Step,
    named: Callable[[str], str],
    own: Callable[[], str],
    group: Fused | None,
    model: tuple[Known, Shaken],
    heads: Any,
    streams: Callable[[], str],
) -> list[ast.stmt]:
    """The statements of a step.

    Args:
        step: built.
        named: the variable of a named tensor.
        own: makes an attribute for the step's part, and gives its name.
        group: the fused attention that it belongs to.
        model: what is known of the model, and what takes in what the statements need.
        heads: of the attention that it ends, where its values are features of all heads.
        streams: the streams of the model around it; empty where there is none.
    """
    known, shaken = model
    if group is not None and group.role == "sum":
        return _attention(step, named, own, group, shaken, heads)
    if group is not None:
        if isinstance(step.op, Offset) and step.op.scale is not None:
            group.factors[step] = f"{own()}.scale"
        return []
    reads, into = [named(name) for name in step.takes], ", ".join(map(named, step.into))
    value = inlined(step.op, known, shaken, reads)
    if value is not None:
        return [ast.Assign([ast.parse(into, mode="eval").body], value)]
    call, results = _call(step, reads, own, shaken, streams), 2 if step.op.kind == "rotation" else 1
    if isinstance(step.op, Op) or len(step.into) == results:
        return _parsed(f"{into} = {call}")
    streams_given = [f'{named(name)} = published["{name}"]' for name in step.into[results:]]
    return _parsed("\n".join([f"{named(step.into[0])}, published = {call}", *streams_given]))


def _attention(
    step: Step, named: Callable[[str], str], own: Callable[[], str], group: Fused, shaken: Shaken, heads: Any
) -> list[ast.stmt]:
    (q, k), v = map(named, group.scores.takes), named(step.takes[0])
    assert isinstance(step.op, WeightedSum)
    attend, queries = shaken.need(SCORES, "attend_offset" if group.offsets else "attend_alone"), q
    if heads is not None:
        v = f"{shaken.need(SCORES, 'split_heads')}({v}, {heads})"
    if step.op.norm is not None:
        v = f"{own()}.norm({v})"
    total = ""
    for other, name in group.offsets:
        cut, factor = named(name), group.factors.get(other)
        if factor is not None:
            queries, total = f"{factor} * {queries}", total and f"{factor} * ({total})"
        if len(group.offsets) > 1:
            cut = f"{shaken.need(SCORES, 'offset_for')}({cut}, {q}, {k})"
        total = f"{total} + {cut}" if total else cut
    given = ", ".join(filter(None, [queries, k, v, total, "causal=True" if step.op.causal else ""]))
    y = named(step.into[0])
    code = f"{y} = {attend}({given})"
    if heads is not None:
        code += f"\n{y} = {shaken.need(SCORES, 'join_heads')}({y})"
    return _parsed(code)


def _call(step: Step, reads: list[str], own: Callable[[], str], shaken: Shaken, streams: Callable[[], str]) -> str:
    kind = step.op.kind
    if kind == "residual" and len(reads) > 2:
        raise Unsupported(f"it reads {', '.join(step.takes[2:])}: a residual with streams is left to the library")
    if isinstance(step.op, Op) or kind in ("norm", "residual"):
        return f"{own()}({', '.join(reads)})"
    count = {"rotation": 2, "attention": 3}.get(kind, 1)
    extra = dict(zip(step.takes[count:], reads[count:], strict=True))
    lost = sorted(set(extra) & {"mask", "segments", "bias"})
    if kind == "bias":
        raise Unsupported("a bias of scores as a step of its own is left to the library")
    if lost:
        raise Unsupported(f"it reads {', '.join(lost)}: masks over pairs and documents are left to the library")
    if extra and kind in ("rotation", "attention", "position"):
        raise Unsupported(f"it reads {', '.join(extra)}: {kind} with tokens of its own is left to the library")
    around = streams()
    if kind in ("position", "rotation"):
        positions = f'{around}.get("positions")' if around else "None"
        if kind == "position":
            return f"{reads[0]} + {own()}({positions}, {reads[0]}.shape[1], {reads[0]})"
        return f"{own()}({reads[0]}, {reads[1]}, {positions}, {positions})"
    if kind == "attention":
        sides = [f'{name}={around}.get("{name[2:]}")' for name in _SIDES] if around else []
        return f"{own()}({', '.join(reads)}, {shaken.need(ATTENTION, 'Sides')}({', '.join(sides)}))"
    pairs = [f"**{around}"] if around else []
    pairs += [f'"{name}": {value}' for name, value in extra.items()]
    given = around if around and not extra else f"{{{', '.join(pairs)}}}"
    return f"{own()}({reads[0]}, {given})"


def cut_value(step: Step, named: Callable[[str], str], reads: Sequence[tuple[str, Shape]]) -> list[ast.stmt]:
    """A slice, with bounds that are numbers or sizes of what is read."""
    op, (first, shape) = step.op, reads[0]
    assert isinstance(op, CutOp)

    def bound(size: Any) -> str:
        if size is None or isinstance(size, int):
            return "" if size is None else str(size)
        tree = ast.parse(str(size), mode="eval").body
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = _size(node.id)
        return ast.unparse(tree)

    def _size(name: str) -> str:
        for read, sizes in reads:
            for place, size in enumerate(sizes):
                if str(size) == name:
                    return named(read) if tells_size(read) else f"{named(read)}.shape[{place}]"
        raise Unsupported(f"a cut at {name}, which is no size of what it reads")

    start = "" if op.start == 0 else bound(op.start)
    before = ":, " * (op.axis % len(shape))
    return _parsed(f"{named(step.into[0])} = {named(first)}[{before}{start}:{bound(op.stop)}]")


_SIDES = ("q_positions", "k_positions", "q_valid", "k_valid")


def _parsed(code: str) -> list[ast.stmt]:
    return ast.parse(code).body
