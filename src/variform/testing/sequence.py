"""Checks of what a token may depend on: not the future, not padding, not other documents, not what a mask forbids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from variform.core.resolve import examine
from variform.testing.case import MIXING, Case, Inputs, seeded
from variform.testing.numbers import gradients, identical, same
from variform.testing.report import NotApplicable, check

FORWARD_FILL = 1e30
"""What stands in padded features: large enough to be seen through any weight that is not exactly zero."""

GRADIENT_FILL = 1e4
"""The same where gradients are taken, which square it."""

IN_PROGRAMS = ("op", "line")
"""Kinds whose host refuses for the sake of other steps."""


@check("causal")
def causal(case: Case) -> None:
    """No output depends on a later input: zero gradients, and equal bits when the future changes."""
    if not case.can.causal:
        refused = examine(case.host(case.setting(causal=True)))[1]
        assert refused or case.part.kind not in MIXING, "it cannot be causal, and a causal model accepts it"
        return
    case.need_sequence()
    case.need_length()
    if case.resolved.get("causal") is False and case.part.kind == "model":
        raise NotApplicable("it is described as not causal")
    for length in (9, 150) if case.part.kind in MIXING else (9,):
        for training in (False, True):
            model = case.model(case.setting(causal=True)).train(training)
            inputs = case.inputs(2, length)
            for step in (0, length // 3, length - 2):
                _no_gradient_from_later(case, model, inputs, step)
                _no_change_from_later(case, model, inputs, step)


def _no_gradient_from_later(case: Case, model: Any, inputs: Inputs, step: int) -> None:
    with leaf(case, model, inputs) as (given, leaves), seeded(5), torch.enable_grad():
        out = case.run(model, given)
        loss = (out[:, : step + 1] * torch.randn_like(out[:, : step + 1])).sum()
        if not loss.requires_grad:
            return
        (gradient,) = torch.autograd.grad(loss, leaves[-1], allow_unused=True)
    if gradient is not None:
        later = gradient[:, step + 1 :].abs().sum((0, 2))
        assert not later.any(), f"outputs up to {step} have a gradient from token {step + 1 + int(later.argmax())}"


def _no_change_from_later(case: Case, model: Any, inputs: Inputs, step: int) -> None:
    length = inputs.x.shape[1]
    other = case.inputs(2, length, seed=77).x
    other = other * 5 if other.is_floating_point() else other
    changed = replace(inputs, x=torch.cat((inputs.x[:, : step + 1], other[:, step + 1 :]), 1))
    outs = []
    for given in (inputs, changed):
        with seeded(6), torch.no_grad():
            outs.append(case.run(model, given)[:, : step + 1])
    state = "in training" if model.training else "in eval"
    identical(outs[1], outs[0], f"outputs up to {step} of {length}, when later tokens change {state}")


@contextmanager
def leaf(case: Case, model: Any, inputs: Inputs) -> Iterator[tuple[Inputs, list[Tensor]]]:
    """Inputs of which a gradient can be taken: the features, or what the embedding makes of the tokens."""
    if inputs.form == "features":
        given = replace(inputs, x=inputs.x.detach().clone().requires_grad_())
        yield given, [given.x]
        return
    leaves: list[Tensor] = []

    def detach(module: Any, args: Any, out: Any) -> Any:
        x = out[0] if isinstance(out, tuple) else out
        leaves.append(x.detach().requires_grad_())
        return (leaves[-1], *out[1:]) if isinstance(out, tuple) else leaves[-1]

    embedding = case.embedding(model) if not case.is_program else model.get_submodule("lines.0.op")
    assert embedding is not None
    hook = embedding.register_forward_hook(detach)
    try:
        yield inputs, leaves
    finally:
        hook.remove()


# ---- padding ----


@check("padding")
def padding(case: Case) -> None:
    """Padding on either side changes no real token and no gradient, and a row of padding alone gives finite values."""
    case.need_sequence()
    for is_causal in causalities(case):
        model = case.model(case.setting(causal=is_causal)).eval()
        if not _honours(case, model, "valid", case.can.key_padding, valid=torch.ones(3, 9, dtype=torch.bool)):
            return
        for side in ("left", "right"):
            _padded_equals_short(case, model, side)
        padded_context_equals_short(case, model)


def _padded_equals_short(case: Case, model: Any, side: str) -> None:
    lengths = (7, 4, 1, 0)
    inputs = case.inputs(4, 9)
    steps = torch.arange(9).expand(4, 9)
    count = torch.tensor(lengths).unsqueeze(1)
    valid = steps < count if side == "right" else steps >= 9 - count
    for fill in (FORWARD_FILL, -FORWARD_FILL):
        with torch.no_grad():
            out = case.run(model, replace(inputs, x=poisoned(inputs.x, valid, fill)), valid=valid)
            for row, real in enumerate(lengths):
                one = inputs.rows(slice(row, row + 1))
                if real:
                    short = case.run(model, replace(one, x=one.x[:, valid[row]]))[0]
                    got = out[row][valid[row]] if case.has_length else out[row]
                    same(got, short, f"padding on the {side} of a row of {real} tokens")
    given = replace(inputs, x=poisoned(inputs.x, valid, GRADIENT_FILL))
    weights = torch.randn(9, 1, dtype=torch.float64)
    out = case.run(model, given, valid=valid)
    padded = gradients(sum(_loss(case, out[r], valid[r], weights) for r, n in enumerate(lengths) if n), model)
    shorter = [case.run(model, _only(inputs, r, valid))[0] for r, n in enumerate(lengths) if n]
    short_losses = (_loss(case, out, slice(None), weights[: out.shape[0]]) for out in shorter)
    for name, wanted in gradients(sum(short_losses), model).items():
        same(padded[name], wanted, f"the gradient of {name}, padding on the {side}", 1e-9)


def _only(inputs: Inputs, row: int, valid: Tensor) -> Inputs:
    one = inputs.rows(slice(row, row + 1))
    return replace(one, x=one.x[:, valid[row]])


def _loss(case: Case, out: Tensor, real: Any, weights: Tensor) -> Any:
    if not case.has_length:
        return out.square().sum()
    return (out[real].square() * weights[: out[real].shape[0]]).sum()


def padded_context_equals_short(case: Case, model: Any) -> None:
    """Padding of the sequence that is read changes nothing."""
    inputs = case.inputs(2, 4, context=6)
    if inputs.context is None:
        return
    for side in ("left", "right"):
        steps = torch.arange(6).expand(2, 6)
        valid = steps < torch.tensor([[6], [2]]) if side == "right" else steps >= torch.tensor([[0], [4]])
        given = replace(inputs, context=poisoned(inputs.context, valid, FORWARD_FILL))
        with torch.no_grad():
            out = case.run(model, given, context_mask=valid)
            one = inputs.rows(slice(1, 2))
            assert one.context is not None
            short = case.run(model, replace(one, context=one.context[:, valid[1]]))[0]
        same(out[1], short, f"padding on the {side} of the context")


def poisoned(x: Tensor, valid: Tensor, fill: float) -> Tensor:
    """`x` with something else at padding: huge features, or other tokens."""
    if x.is_floating_point():
        signs = 1 - 2 * (torch.arange(x.shape[-1]) % 3 == 0).to(x.dtype)
        return torch.where(valid.unsqueeze(-1), x, signs * fill)
    other = (x + 1 + int(fill > 0)) % (int(x.max()) + 1)
    return torch.where(valid, x, other)


# ---- packed documents ----


@check("packed")
def packed(case: Case) -> None:
    """Documents packed into one row, told apart by segments, equal separate runs."""
    case.need_sequence()
    case.need_length()
    rows = ((4, 1, 6), (2, 9))
    ids = (5, 2, 9)
    for is_causal in causalities(case):
        model = case.model(case.setting(causal=is_causal)).eval()
        segments = torch.tensor([[ids[d] for d, n in enumerate(lengths) for _ in range(n)] for lengths in rows])
        if not _honours(case, model, "segments", case.can.packed, segments=segments, batch=2, length=11):
            return
        inputs = case.inputs(2, 11)
        with torch.no_grad():
            out = case.run(model, inputs, segments=segments)
            for row, lengths in enumerate(rows):
                start = 0
                for length in lengths:
                    steps = slice(start, start + length)
                    alone = case.run(model, inputs.rows(slice(row, row + 1)).steps(steps))[0]
                    same(out[row, steps], alone, f"the document of {length} tokens at {start} of a packed row")
                    start += length


# ---- masks ----


@check("mask")
def mask(case: Case) -> None:
    """Nothing passes where a mask forbids it, something does where it allows it, and forbidden rows stay finite."""
    case.need_sequence()
    case.need_length()
    if case.reads_context and case.part.kind in MIXING:
        raise NotApplicable("it reads another sequence, whose mask is checked as padding")
    if getattr(case.part, "passes_masks", False):
        raise NotApplicable("what it moves goes by places; a mask is for its body")
    groups = torch.tensor([[0, 1, 0, 2, 1, 0, 2], [0, 0, 0, 0, 1, 1, 1]])
    allowed = (groups.unsqueeze(1) == groups.unsqueeze(2)).unsqueeze(1)
    for is_causal in causalities(case):
        model = case.model(case.setting(causal=is_causal)).eval()
        if not _honours(case, model, "mask", case.can.attention_mask, mask=allowed, batch=2, length=7):
            return
        _only_within_groups(case, model, groups, allowed)
        _forbidden_rows_are_finite(case, model)


def _only_within_groups(case: Case, model: Any, groups: Tensor, allowed: Tensor) -> None:
    with leaf(case, model, case.inputs(2, 7)) as (given, leaves), torch.enable_grad():
        out = case.run(model, given, mask=allowed)
        for step in range(7):
            (gradient,) = torch.autograd.grad(out[:, step].square().sum(), leaves[-1], retain_graph=True)
            strength = gradient.abs().sum(-1)
            forbidden = strength * (groups != groups[:, step : step + 1])
            assert not forbidden.any(), (
                f"token {step} depends on token {int(forbidden.sum(0).argmax())}, which the mask forbids"
            )
    if case.part.kind in MIXING and step:
        kept = strength[:, :step] * (groups[:, :step] == groups[:, step : step + 1])
        reach = case.resolved.get("window")
        assert kept.any() or reach is not None, "the mask leaves no dependence where it allows it"


def _forbidden_rows_are_finite(case: Case, model: Any) -> None:
    nothing = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    nothing[0, :, 3] = False
    nothing[1] = False
    with leaf(case, model, case.inputs(2, 7)) as (given, leaves), torch.enable_grad():
        out = case.run(model, given, mask=nothing)
        assert bool(torch.isfinite(out).all()), "a token that may attend to nothing is not finite"
        (gradient,) = torch.autograd.grad(out.square().sum(), leaves[-1])
        assert bool(torch.isfinite(gradient).all()), "a token that may attend to nothing has no finite gradient"


# ---- shared ----


def causalities(case: Case) -> tuple[bool, ...]:
    """The settings of `causal` under which the part is checked."""
    if not case.can.causal:
        return (False,)
    return (True, False) if case.part.kind in MIXING else (True,)


def _honours(case: Case, model: Any, stream: str, able: bool, batch: int = 3, length: int = 9, **given: Any) -> bool:
    """Whether the stream is taken; a part that cannot honour it must refuse it."""
    inputs = case.inputs(batch, length)
    if inputs.x.shape[1] != length and case.can.lengths:
        if able:
            raise NotApplicable("it takes lengths of its own, and the rows of this check have others")
        given = {name: _resized(value, length, inputs.x.shape[1]) for name, value in given.items()}
    accepted = case.accepts(model, inputs, **given)
    if accepted and not able:
        raise AssertionError(f"it says that it cannot honour {stream!r}, and takes it all the same")
    if accepted or not able:
        return accepted
    if case.part.kind in IN_PROGRAMS or case.is_program:
        raise NotApplicable(f"the program around it refuses {stream!r}")
    case.run(model, inputs, **given)  # shows why it refuses what it says it can do
    return False


def _resized(stream: Tensor, length: int, wanted: int) -> Tensor:
    """A stream over tokens for another number of them."""
    for axis, size in enumerate(stream.shape):
        if size == length:
            stream = stream.index_select(axis, torch.arange(wanted) % length)
    return stream
