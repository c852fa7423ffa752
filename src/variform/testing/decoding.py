"""Checks of decoding: step by step with a state equals the whole sequence at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from variform.errors import ConfigError
from variform.testing.case import MIXING, Case, Inputs
from variform.testing.numbers import gradients, same
from variform.testing.report import NotApplicable, check
from variform.testing.sequence import FORWARD_FILL, GRADIENT_FILL, poisoned

LENGTH = 33
DEEP = (*MIXING, "layer", "stack", "model", "rotation", "bias", "position", "op", "line")
"""Kinds that may hold state, or whose function depends on where a token stands."""


@check("cache")
def cache(case: Case) -> None:
    """With a state, in chunks of any sizes, ragged rows and empty ones included, the result is that without."""
    case.need_sequence()
    case.need_length()
    inputs = case.inputs(3, LENGTH)
    model = case.model().eval()
    looks_ahead = case.part.kind == "model" and case.resolved.get("causal") is False
    if looks_ahead or not (case.can.decode and case.can.causal):
        _refused(case, model, inputs)
        return
    if not _decodes(case, model, inputs):
        raise NotApplicable("the program around it does not decode")
    # Steps of programs refuse padding without a state; with one it is the plan of the call that tells them of it.
    padded = case.can.key_padding or case.part.kind in ("op", "line") or case.is_program
    with torch.no_grad():
        whole = case.run(model, inputs)
        for bucket in (0, 8):
            same(_in_chunks(case, model, inputs, bucket), whole, f"chunks of all rows alike (bucket {bucket})")
        if padded:
            for side in ("left", "right"):
                same(_ragged(case, model, inputs, side), whole, f"ragged chunks, padding on the {side}")
        if case.part.kind in DEEP and case.part.kind != "model":
            shared = case.model(case.setting(shared=True)).eval()
            same(_in_chunks(case, shared, inputs), case.run(shared, inputs), "a layer that is used twice")
        if case.can.packed:
            _packed(case, model, inputs)
    if case.part.kind in DEEP:
        _segments_with_gradients(case, inputs, padded)


def _refused(case: Case, model: Any, inputs: Inputs) -> None:
    try:
        case.state(model, inputs, LENGTH)
    except ConfigError:
        return
    raise AssertionError("it cannot decode, and a model that holds it gives a decode state")


def _decodes(case: Case, model: Any, inputs: Inputs) -> bool:
    try:
        case.state(model, inputs, LENGTH)
    except ConfigError:
        if case.part.kind == "op" and not case.part.stateful:
            return False
        raise
    return True


def _sizes(seed: int, total: int, largest: int = 7) -> Iterator[tuple[int, int]]:
    """Random cuts of a sequence, as (start, end)."""
    draw, start = random.Random(seed), 0
    while start < total:
        end = min(total, start + draw.randint(1, largest))
        yield start, end
        start = end


def _in_chunks(case: Case, model: Any, inputs: Inputs, bucket: int = 0, **streams: Tensor) -> Tensor:
    state = case.state(model, inputs, LENGTH, bucket=bucket)
    outs = []
    for start, end in _sizes(bucket, LENGTH):
        here = {name: value[:, start:end] for name, value in streams.items()}
        out, state = case.run(model, inputs.steps(slice(start, end)), state=state, **here)
        outs.append(out)
    return torch.cat(outs, 1)


def _ragged(case: Case, model: Any, inputs: Inputs, side: str, fill: float = FORWARD_FILL) -> Tensor:
    """Each row takes its own number of tokens in each call, often none; the rest of the chunk is padding."""
    batch = inputs.x.shape[0]
    draw = random.Random(side)
    state = case.state(model, inputs, LENGTH)
    seen, outs = [0] * batch, [[] for _ in range(batch)]  # type: list[int], list[list[Tensor]]
    while min(seen) < LENGTH:
        counts = [min(draw.choice((0, 0, 1, 2, 5)), LENGTH - s) for s in seen]
        width = max(1, *counts) + draw.randint(0, 1)
        places = [slice(0, n) if side == "right" else slice(width - n, width) for n in counts]
        x = inputs.x[:, :width].clone()
        valid = torch.zeros(batch, width, dtype=torch.bool)
        for row, (place, count) in enumerate(zip(places, counts, strict=True)):
            x[row, place] = inputs.x[row, seen[row] : seen[row] + count]
            valid[row, place] = True
        chunk = replace(inputs, x=poisoned(x, valid, fill))
        out, state = case.run(model, chunk, state=state, valid=valid)
        for row, (place, count) in enumerate(zip(places, counts, strict=True)):
            outs[row].append(out[row, place])
            seen[row] += count
    return torch.stack([torch.cat(row) for row in outs])


def _packed(case: Case, model: Any, inputs: Inputs) -> None:
    segments = (torch.arange(LENGTH) // 10).expand(inputs.x.shape[0], LENGTH).contiguous()
    if not case.accepts(model, inputs, segments=segments):
        return
    whole = case.run(model, inputs, segments=segments)
    same(_in_chunks(case, model, inputs, segments=segments), whole, "packed documents in chunks")


def _segments_with_gradients(case: Case, inputs: Inputs, padded: bool) -> None:
    """Gradients through the state, in training, under both executors."""
    executors = ("plain",) if case.part.kind == "model" else ("plain", "checkpoint")
    for executor in executors:
        model = case.model(case.setting(executor=executor)).train()
        weights = torch.linspace(-1, 1, LENGTH, dtype=torch.float64).view(1, -1, 1)
        whole = case.run(model, inputs)
        wanted = gradients((whole.square() * weights).sum(), model)
        chunked = _in_chunks(case, model, inputs)
        same(chunked, whole, f"chunks in training, executor {executor!r}")
        found = {"chunks": gradients((chunked.square() * weights).sum(), model)}
        if padded:
            ragged = _ragged(case, model, inputs, "right", GRADIENT_FILL)
            same(ragged, whole, f"ragged chunks in training, executor {executor!r}")
            found["ragged chunks"] = gradients((ragged.square() * weights).sum(), model)
        for what, got in found.items():
            for name, gradient in wanted.items():
                same(got[name], gradient, f"the gradient of {name} through {what}, executor {executor!r}", 1e-9)
