"""What a program need not compute, or keep, where its lines say so: attention scores that only one weighted sum reads,
and inputs of linear maps that are cheap to make anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call

from variform.core.part import Part
from variform.ops.attention.meter import is_metered
from variform.ops.attention.offset import plain_autograd, surveys_remembered
from variform.ops.recompute import Cheap
from variform.parts.kinds import Norm
from variform.parts.op.heads import Offset, Scores, WeightedSum
from variform.parts.op.tokenwise import ActivationOp, LinearOp, MergeOp

Names = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """One line of a list, as far as fusion is concerned.

    Args:
        slot: the name of the place.
        reads: the names it needs.
        into: the names it writes.
        op: the part of a step; None for a block.
    """

    slot: str
    reads: Names
    into: Names
    op: Part | None


@dataclass(frozen=True)
class Fusion:
    """Attention scores of a program, and what becomes of them.

    Args:
        scores: the place of the step that asks for them.
        sum: the place of the weighted sum with which they run as one attention; empty when they do not.
        why: why not; empty when they do.
    """

    scores: str
    sum: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.scores}: " + (f"fused with {self.sum}" if self.sum else f"literal, {self.why}")


def fusions(places: Sequence[Place], keep: frozenset[str]) -> dict[int, Fusion]:
    """For each step of a list that computes scores, whether one weighted sum of the list is all that they end in.

    Args:
        places: the lines, in order.
        keep: names that are needed after them.
    """
    return {start: _follow(places, start, keep) for start, place in enumerate(places) if isinstance(place.op, Scores)}


def cheap(places: Sequence[Place], keep: frozenset[str]) -> frozenset[int]:
    """The norms and activations of a list whose results only linear maps of the list read.

    Args:
        places: the lines, in order.
        keep: names that are needed after them.
    """
    found = []
    for start, place in enumerate(places):
        if isinstance(place.op, (Norm, ActivationOp)) and len(place.reads) == 1:
            (name,) = place.into
            readers = _readers(places, start, name, keep)
            if readers and all(r is not None and isinstance(places[r].op, LinearOp) for r in readers):
                found.append(start)
    return frozenset(found)


def fusing() -> AbstractContextManager[None]:
    """The context in which a whole program runs; what is found out about an offset holds within."""
    return nullcontext() if torch.compiler.is_compiling() else surveys_remembered()


def postponed(op: Part, inputs: Sequence[Tensor]) -> Any:
    """What stands in for the result of a step that is planned to be fused; None where it is to run as usual.

    Args:
        op: the part of the step.
        inputs: what it reads.
    """
    if isinstance(op, Scores):
        return op.pending(*inputs)
    if any(module._forward_hooks or module._forward_pre_hooks for module in op.modules()):
        return None
    named = dict(op.named_parameters())
    parameters = tuple(named.values())
    if not torch.is_grad_enabled() or torch.is_autocast_enabled(inputs[0].device.type):
        return None
    measured = is_metered() and isinstance(inputs[0], FakeTensor)  # stand-ins for what would run
    if not (measured or plain_autograd(*inputs, *parameters)) or not any(
        t.requires_grad for t in (*inputs, *parameters)
    ):
        return None
    return Cheap(op(*inputs), partial(_with_parameters, op, tuple(named)), (*inputs, *parameters))


def _with_parameters(op: Part, names: Names, x: Tensor, *parameters: Tensor) -> Any:
    """The part's result with these parameters; in the backward pass its own may be others (`functional_call`)."""
    return functional_call(op, dict(zip(names, parameters, strict=True)), (x,))


def _follow(places: Sequence[Place], start: int, keep: frozenset[str]) -> Fusion:
    scores, (name,) = places[start].slot, places[start].into
    while True:
        readers = _readers(places, start, name, keep)
        if not readers:
            return Fusion(scores, why="nothing reads them")
        if len(readers) > 1 or readers[0] is None:
            others = [places[r].slot for r in readers if r is not None]
            end = "they are needed after these lines" if None in readers else ""
            told = f"{' and '.join(others)} read them" if len(others) > 1 else ""
            return Fusion(scores, why="; ".join(filter(None, (told, end))))
        start = readers[0]
        place = places[start]
        why = _refusal(place, name)
        if why:
            return Fusion(scores, why=f"{place.slot} {why}")
        if isinstance(place.op, WeightedSum):
            return Fusion(scores, place.slot)
        (name,) = place.into


def _refusal(place: Place, name: str) -> str:
    """Why a line cannot take scores that are not computed."""
    op, reads = place.op, place.reads
    if op is None:
        return "is a block, and reads them"
    if reads.count(name) > 1:
        return "reads them twice"
    if isinstance(op, MergeOp) and op.how == "add":
        return ""
    if isinstance(op, Offset):
        return "" if reads[0] == name else "reads them as an offset"
    if not isinstance(op, WeightedSum) or reads[1] != name:
        return f"({op.name}) reads them"
    if op.function != "softmax":
        return f"weighs by {op.function}, not softmax"
    return "gives the weights back" if op.weights else ""


def _readers(places: Sequence[Place], start: int, name: str, keep: frozenset[str]) -> list[int | None]:
    """Which lines read what the line at `start` writes as `name`; None among them for what comes after the list."""
    found: list[int | None] = []
    for index in range(start + 1, len(places)):
        if name in places[index].reads:
            found.append(index)
        if name in places[index].into:
            return found
    return [*found, None] if name in keep else found
