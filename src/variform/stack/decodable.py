"""Whether a model can decode step by step, told from its spec or from the built parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch._compile import _disable_dynamo

from variform.core.part import Can, Part
from variform.core.spec import Shared, Spec, described
from variform.errors import ConfigError, Problem
from variform.parts.kinds import Attention, Mixer, Op, Residual

_HINT = "decoding needs causal parts with a decode state: set causal=True, or take other parts"


def undecodable(spec: Spec) -> list[Problem]:
    """Each part of a resolved spec that has no decode state, or looks ahead.

    What reads another side (the encoder, an attention over a context) does not run step by step and is passed over.
    """
    problems: list[Problem] = []
    _scan(spec, "", problems)
    return problems


def refuse_undecodable(model: Part) -> None:
    """Refuse cached decoding for a built model with a part that has no decode state or looks ahead.

    Raises:
        ConfigError: naming each such part.
    """
    (_apart if torch.compiler.is_compiling() else _refuse_undecodable)(model)


def _refuse_undecodable(model: Part) -> None:
    if "_spec" in model.__dict__:
        problems = undecodable(model.spec)
    else:
        problems = _scan_modules(model)
    if problems:
        raise ConfigError(problems)


_apart = _disable_dynamo(_refuse_undecodable)
"""The same outside of graphs, which would trace for nothing how specs are walked. It is the form of
`torch.compiler.disable` that loads the compiler when it is called, and not with this module."""


def _scan(spec: Spec, path: str, problems: list[Problem]) -> None:
    before = len(problems)
    for slot, index, child in spec.children():
        inner = child.spec if isinstance(child, Shared) else child
        if inner is not None and spec.part.steps(slot):
            step = slot if index is None else f"{slot}.{index}"
            _scan(inner, f"{path}.{step}" if path else step, problems)
    if len(problems) == before:  # a part that cannot because a part below cannot is not named again
        message = _refusal(spec.part, spec.part.abilities(spec.args), spec.get("causal"))
        if message:
            problems.append(Problem(path, message, hint=_hint(spec.part)))


def _scan_modules(model: Part) -> list[Problem]:
    """The same for a model that was constructed directly: parts, by their places among the modules."""
    problems = []
    skipped: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Part) and not any(name == s or name.startswith(f"{s}.") for s in skipped):
            skipped += [f"{name}.{child}".strip(".") for child, _ in module.named_children() if not module.steps(child)]
            message = _refusal(type(module), module.can, getattr(module, "causal", None))
            if message:
                problems.append(Problem(name, message, hint=_hint(type(module))))
    return problems


def _hint(part: type[Part]) -> str:
    return "or run the whole sequence at once, without a state" if issubclass(part, Op) else _HINT


def _refusal(part: type[Part], can: Can, causal: Any) -> str | None:
    if not can.decode and issubclass(part, Op):
        how = "moves, drops or joins tokens" if can.causal else "lets a token see later ones"
        return f"cannot decode step by step: {part.kind} {part.name!r} has no decode state: it {how}"
    if not can.decode:
        return f"cannot decode step by step: {part.kind} {part.name!r} has no decode state"
    if causal is False and (issubclass(part, (Attention, Mixer)) or (issubclass(part, Residual) and part.stateful)):
        return f"cannot decode step by step: {part.kind} {part.name!r} is not causal"
    return None


def lines_abilities(lines: Iterable[Any]) -> Can:
    """What all steps of a program, described, can do."""
    can = Can()
    for line in map(described, lines):
        op = described(line.get("op")) if isinstance(line, Spec) else None
        if isinstance(op, Spec):
            can = can & op.part.abilities(op.args)
        elif isinstance(line, Spec):
            can = can & lines_abilities(line.get("lines") or ())
    return can
