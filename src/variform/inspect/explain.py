"""`vf.explain`: which backend serves each attention of a model, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from variform.core.codec import as_spec
from variform.core.resolve import resolve
from variform.errors import ConfigError
from variform.inspect.describe import check_sizes
from variform.inspect.fake import FakeModel
from variform.inspect.rows import calls_by_path
from variform.inspect.table import path_template, path_text
from variform.inspect.trace import Node
from variform.ops.attention.call import Call
from variform.ops.attention.meter import metering, standing_in
from variform.ops.attention.select import Candidate, candidates
from variform.parts.kinds import Model
from variform.stack.decodable import undecodable


@dataclass(frozen=True)
class Choice:
    """One attention call and what every backend says to it.

    Args:
        path: of the part that makes the call.
        q, k, v: shapes.
        dtype: of q.
        mask: what restricts the call, in words.
        asked: the backend asked for in the spec, or "auto".
        candidates: one a backend, the chosen one first.
    """

    path: str
    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    dtype: str
    mask: str
    asked: str
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> str | None:
        """The backend that runs; None where the one asked for refuses."""
        return next((candidate.name for candidate in self.candidates if candidate.chosen), None)

    def __str__(self) -> str:
        """The call, then a line for each backend: what runs, and why not the others."""
        lines = [f"  q {self.q}  k {self.k}  v {self.v}  {self.dtype}", f"  mask: {self.mask}"]
        if self.asked != "auto":
            refused = "" if self.chosen else ", which refuses: running the model raises a BackendError"
            lines.append(f"  asked for: {self.asked}{refused}")
        width = max(len(candidate.name) for candidate in self.candidates)
        for one in self.candidates:
            verdict = "->" if one.chosen else "no" if one.refusal is not None else "  "
            lines.append(f"  {verdict} {one.name.ljust(width)}  {one.why}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """The attention calls of one pass of a model, in the order of its parts.

    Args:
        model: kind and name of what was run.
        batch: rows.
        length: tokens a row; None where the input has no such size.
        device: the device type that backends answer for.
        training: whether a backward pass follows.
        decode: whether the pass is one cached step of decoding.
        rows: one an attention call.
    """

    model: str
    batch: int
    length: int | None
    device: str
    training: bool
    decode: bool
    rows: tuple[Choice, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        rows = [{**asdict(row), "chosen": row.chosen, "q": [*row.q], "k": [*row.k], "v": [*row.v]} for row in self.rows]
        for row in rows:
            row["candidates"] = list(row["candidates"])
        return {**asdict(self), "rows": rows}

    def __str__(self) -> str:
        how = "one decoding step" if self.decode else "training" if self.training else "inference"
        length = "" if self.length is None else f", L = {self.length}"
        lines = [f"{self.model}, B = {self.batch}{length}, {how} on {self.device}"]
        if not self.rows:
            lines += ["", "no attention with a choice of backends"]
        for paths, row in _grouped(self.rows):
            lines += ["", path_text(paths) or "(the whole)", str(row)]
        return "\n".join(lines)


def explain(
    source: Any,
    batch: int = 1,
    length: int | None = None,
    *,
    device: str | None = None,
    training: bool = True,
    decode: bool = False,
    dtype: torch.dtype = torch.float32,
    **facts: Any,
) -> Explanation:
    """Which backend serves each attention of a model, and why the others do not. Nothing is computed.

    Args:
        source: a spec, a mapping, a config file, a built model, or one attention call (`ops.attention.Call`), which has
            all that follows within itself.
        batch: rows.
        length: tokens a row; the longest the model takes by default.
        device: the device type that backends answer for, present or not; that of a built model, else "cpu".
        training: whether a backward pass follows; dropout is on then.
        decode: explain one cached step, the last of `length` tokens, instead of a whole pass.
        dtype: of parameters and floating-point inputs.
        **facts: what the surroundings provide, when a part is explained alone (`dim=64, heads=4`).

    Raises:
        ConfigError: the spec is wrong, a size is missing, an unknown backend is asked for, or the model cannot decode.
        ShapeError: the model does not take these sizes.
    """
    if isinstance(source, Call):
        row, rows_of_q = Choice(path="", **_judged(source, "auto")), source.q.shape
        return Explanation("call", rows_of_q[0], rows_of_q[2], source.target, source.needs_grad, False, (row,))
    check_sizes(batch=batch, length=length)
    resolved = resolve(as_spec(source), **facts)
    target = device or _device_of(source)
    if decode and (problems := undecodable(resolved)):
        raise ConfigError(problems)
    model = FakeModel(resolved, dtype, sink=_judged)
    length = length or model.longest
    training = training and not decode
    model.part.train(training)
    grad: AbstractContextManager[Any] = nullcontext() if training else torch.no_grad()
    with standing_in(target), grad:
        root = _step(model, batch, length) if decode else model.trace(batch, length)
    calls = calls_by_path(model.tree, root)
    rows = [Choice(path=path, **said) for path, nodes in calls.items() for node in nodes for said in node.attention]
    name = f"{resolved.kind} {resolved.name!r}"
    return Explanation(name, batch, length, target, training, decode, tuple(rows))


@contextmanager
def explaining() -> Iterator[list[Choice]]:
    """What every backend says to the attention calls that are made within, by any module, with the masks it is given.

    with explaining() as choices:
        module(x, att_mask=mask)
    print(*choices, sep="\\n")
    """
    choices: list[Choice] = []
    with metering(lambda call, backend: choices.append(Choice(path="", **_judged(call, backend)))):
        yield choices


def _step(model: FakeModel, batch: int, length: int | None) -> Node:
    """One token after `length - 1` cached ones."""
    if not isinstance(model.part, Model):
        raise ConfigError("only a whole model decodes step by step", hint="leave decode out, or explain the model")
    if length is None:
        raise ConfigError("give length, the number of tokens")
    args, _ = model.arguments(batch, length)
    lead, ids = (None,) * (len(args) - 1), args[-1]
    with model.mode:
        state = model.make_state(batch, length)
        if length > 1:
            _, state = model.tracer.run(*lead, ids[:, : length - 1], state=state)[1]
        last = ids[:, length - 1 :]
    return model.tracer.run(*lead, last, state=state)[0]


def _judged(call: Call, backend: str) -> dict[str, Any]:
    return {
        "q": tuple(call.q.shape),
        "k": tuple(call.k.shape),
        "v": tuple(call.v.shape),
        "dtype": str(call.q.dtype).removeprefix("torch."),
        "mask": _mask_text(call),
        "asked": backend,
        "candidates": tuple(candidates(call, backend)),
    }


def _mask_text(call: Call) -> str:
    parts = [] if call.structure is None else [repr(call.structure)]
    if call.mask is not None:
        parts.append(f"mask {type(call.mask).__name__}")
    if call.q_segments is not None:
        parts.append("documents")
    if call.k_valid is not None:
        parts.append("padding")
    if not call.aligned and parts:
        parts.append("by given positions")
    parts += [type(modifier).__name__ for modifier in call.scores]
    if call.dropout:
        parts.append(f"dropout {call.dropout}")
    return ", ".join(parts) or "none"


def _device_of(source: Any) -> str:
    if isinstance(source, nn.Module):
        return next((parameter.device.type for parameter in source.parameters()), "cpu")
    return "cpu"


def _grouped(rows: tuple[Choice, ...]) -> list[tuple[list[str], Choice]]:
    """Calls that differ in one number of their path alone are shown once."""
    groups: dict[Any, tuple[list[str], Choice]] = {}
    for row in rows:
        key = (path_template(row.path), row.q, row.k, row.v, row.dtype, row.mask, row.asked, row.candidates)
        groups.setdefault(key, ([], row))[0].append(row.path)
    return list(groups.values())
