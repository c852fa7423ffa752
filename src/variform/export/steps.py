"""One step of a program as statements."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from variform.export.fold import Known
from variform.export.inline import inlined
from variform.export.shake import Shaken, Unsupported
from variform.parts.kinds import Op
from variform.parts.op.heads import Offset, Scores, WeightedSum
from variform.stack.lines import Stage, Step

_STANDINS = "variform.export.standins"


@dataclass
class Fused:
    """Steps that run as one attention.

    Args:
        scores: the step that asks for scores.
        offsets: what is added to them, in order: the step, and the name of the offset.
        role: what the step at hand is in it: "scores", "offset" or "sum".
        keeps: names that are overwritten before the sum, and must be kept under another.
    """

    scores: Step
    offsets: list[tuple[Step, str]] = field(default_factory=list)
    role: str = ""
    keeps: frozenset[str] = frozenset()


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
            found[place] = Fused(group.scores, group.offsets, role)
    return found


def step_value(
    step: Step,
    named: Callable[[str], str],
    own: Callable[[], str],
    group: Fused | None,
    known: Known,
    shaken: Shaken,
    heads: Any,
    flat: bool,
) -> list[ast.stmt]:
    """The statements of a step.

    Args:
        step: built.
        named: the variable of a named tensor.
        own: makes an attribute for the step's part, and gives its name.
        group: the fused attention that it belongs to.
        known: of the model.
        shaken: takes in what the statements need.
        heads: of the attention that it ends.
        flat: whether its first result is [B, L, features].
    """
    reads, into = [named(name) for name in step.takes], ", ".join(map(named, step.into))
    if group is not None and group.role != "sum":
        return []
    if group is not None:
        return _attention(step, named, own, group, shaken, heads if flat else None)
    value = inlined(step.op, known, shaken, reads)
    if value is not None:
        return [ast.Assign([ast.parse(into, mode="eval").body], value)]
    return _parsed(f"{into} = {_call(step, reads, own, shaken)}")


def _attention(
    step: Step, named: Callable[[str], str], own: Callable[[], str], group: Fused, shaken: Shaken, heads: Any
) -> list[ast.stmt]:
    (q, k), v = map(named, group.scores.takes), named(step.takes[0])
    assert isinstance(step.op, WeightedSum)
    attend = shaken.need(_STANDINS, "attend_scores")
    if heads is not None:
        v = f"{shaken.need(_STANDINS, 'split_heads')}({v}, {heads})"
    if step.op.norm is not None:
        v = f"{own()}.norm({v})"
    total = ""
    for other, name in group.offsets:
        cut = named(name)
        if isinstance(other.op, Offset) and other.op.scale is not None:
            raise Unsupported("a scaled offset in a fused attention")
        if len(group.offsets) > 1:
            cut = f"{shaken.need(_STANDINS, 'offset_for')}({cut}, {q}, {k})"
        total = f"{total} + {cut}" if total else cut
    given = ", ".join(filter(None, [q, k, v, total, "causal=True" if step.op.causal else ""]))
    y = named(step.into[0])
    code = f"{y} = {attend}({given})"
    if heads is not None:
        code += f"\n{y} = {shaken.need(_STANDINS, 'join_heads')}({y})"
    return _parsed(code)


def _call(step: Step, reads: list[str], own: Callable[[], str], shaken: Shaken) -> str:
    kind = step.op.kind
    if isinstance(step.op, Op) or kind in ("norm", "residual"):
        return f"{own()}({', '.join(reads)})"
    count = {"rotation": 2, "attention": 3}.get(kind, 1)
    extra = dict(zip(step.takes[count:], reads[count:], strict=True))
    lost = sorted(set(extra) & {"mask", "segments", "bias"})
    if lost or (extra and kind in ("rotation", "attention", "position", "bias")):
        raise Unsupported(f"a step of kind {kind} that reads the stream {', '.join(lost or extra)}")
    streams = "{" + ", ".join(f'"{name}": {value}' for name, value in extra.items()) + "}"
    match kind:
        case "position":
            return f"{reads[0]} + {own()}(None, {reads[0]}.shape[1], {reads[0]})"
        case "rotation":
            return f"{own()}({reads[0]}, {reads[1]}, None, None)"
        case "attention":
            return f"{own()}({', '.join(reads)}, {shaken.need(_STANDINS, 'Sides')}())"
        case "bias":
            raise Unsupported("a bias as a step")
    return f"{own()}({reads[0]}, {streams})"


def _parsed(code: str) -> list[ast.stmt]:
    return ast.parse(code).body


__all__ = ["Fused", "Scores", "fused_groups", "step_value"]
