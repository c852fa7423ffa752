"""Checks of one instance: building, configuration, shapes, gradients, and that a call leaves no trace."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import variform.core.codec as codec
from variform.core.resolve import examine, resolve
from variform.testing.case import Case, seeded
from variform.testing.hosts import FACTS
from variform.testing.numbers import gradients, identical, rms, tensors_in
from variform.testing.report import NotApplicable, check


@check("builds")
def builds(case: Case) -> None:
    """Builds from the facts it needs and no others, and carries its resolved spec."""
    if not case.stands_alone:
        raise NotApplicable("it works on what other parts publish")
    given: dict[str, Any] = {}
    for _ in range(len(FACTS) + 1):
        _, problems = examine(case.spec, **given)
        missing = {problem.path.rpartition(".")[2] for problem in problems} - given.keys()
        known = {**FACTS, **case.facts}
        if not problems or not missing <= known.keys():
            break
        given.update({name: known[name] for name in missing})
    assert not problems, "; ".join(str(problem) for problem in problems)
    part = codec.as_spec(case.spec).part
    with seeded(0):
        from variform.core.build import build

        built = build(case.spec, **given)
    assert type(built) is part, f"build made a {type(built).__name__}"
    assert built.spec == resolve(case.spec, **given), "the part does not carry its resolved spec"
    for name, tensor in (*built.named_parameters(), *built.named_buffers()):
        assert bool(torch.isfinite(tensor).all()), f"{name} is not finite after building"


@check("config")
def config(case: Case) -> None:
    """Its spec survives dict, YAML and JSON, as given and resolved, short and full; the copy builds the same part."""
    resolved = case.resolved
    for spec in (case.spec, resolved):
        for full in (False, True):
            assert codec.from_dict(codec.to_dict(spec, full=full)) == spec, "dict round trip"
            assert codec.from_yaml(codec.to_yaml(spec, full=full)) == spec, "YAML round trip"
            assert codec.from_json(codec.to_json(spec, full=full)) == spec, "JSON round trip"
    if case.stands_alone:
        assert resolve(resolved) == resolved, "a resolved spec resolves to itself"
    before = codec.to_yaml(case.spec)
    one = case.alone().state_dict()
    two = Case(replace(case.sample, spec=codec.from_yaml(before)), case.facts).alone().state_dict()
    assert one.keys() == two.keys()
    for name, value in one.items():
        identical(two[name], value, f"{name} of the part built from its YAML")
    assert codec.to_yaml(case.spec) == before, "building changed the spec"


@check("shapes")
def shapes(case: Case) -> None:
    """Takes odd lengths and batches of 1 and 3, and gives finite results of the sizes and type it promises."""
    model = case.model().eval()
    lengths = (1, 7, 33) if case.form != "images" and case.can.lengths else (7,)
    if case.form != "images" and not case.can.lengths:
        assert not case.accepts(model, case.of_length(3, 7)), "it says that it takes one length, and takes another"
    for length in lengths:
        assert case.fit(length) == length or not case.accepts(model, case.of_length(3, length)), (
            f"it says that it does not take {length} tokens, and takes them all the same"
        )
    for length in lengths:
        whole = None
        for batch in (3, 1):
            inputs = case.inputs(3, length).rows(slice(0, batch))
            out = case.run(model, inputs)
            assert isinstance(out, Tensor), f"returned {type(out).__name__}, not a tensor"
            assert out.shape[0] == batch, f"batch {batch}, length {length}: shape {list(out.shape)}"
            assert bool(torch.isfinite(out).all()), f"batch {batch}, length {length}: not finite"
            assert out.dtype == torch.float64, f"float64 in, {out.dtype} out"
            if case.has_length:
                assert out.shape[1] == inputs.x.shape[1], f"length {length}: shape {list(out.shape)}"
            whole = out if whole is None else whole
            assert out.shape[1:] == whole.shape[1:]


@check("gradients")
def reach(case: Case) -> None:
    """Every parameter, moved off its initial value, gets a finite gradient that is not zero."""
    model = case.model().train()
    inputs = case.inputs(3, 33)
    with seeded(2):
        out = case.run(model, inputs)
        found = gradients((out * torch.randn_like(out)).sum(), case.under_test(model))
    for name, gradient in found.items():
        assert bool(torch.isfinite(gradient).all()), f"the gradient of {name} is not finite"
        assert bool(gradient.any()), f"{name} gets no gradient"


@check("stateless")
def stateless(case: Case) -> None:
    """A call leaves no trace: the second gives the same, and inputs, streams and buffers are unchanged."""
    for training, padded in itertools.product((False, True), (False, True)):
        model = case.model().train(training)
        inputs = case.inputs(2, 9)
        valid = torch.arange(9).expand(2, 9) < torch.tensor([[9], [6]])
        if padded and not case.accepts(model, inputs, valid=valid):
            continue
        streams: dict[str, Any] = {"valid": valid} if padded else {}
        kept = [tensor.clone() for tensor in (*_given(inputs, streams), *model.state_dict().values())]
        names = set(streams)
        runs = []
        for _ in range(2):
            with seeded(4), torch.set_grad_enabled(training):
                runs.append(case.run(model, inputs, **streams))
        state = ("in training" if training else "in eval") + (", with padding" if padded else "")
        identical(runs[1], runs[0], f"the second call {state}")
        after = (*_given(inputs, streams), *model.state_dict().values())
        for before, now in zip(kept, after, strict=True):
            identical(now, before, f"an input, stream or buffer after a call {state}")
        assert set(streams) == names, "the streams have other keys after the call"


def _given(inputs: Any, streams: dict[str, Any]) -> list[Tensor]:
    return tensors_in((inputs.x, inputs.context, inputs.condition, streams))


@check("reproducible")
def reproducible(case: Case) -> None:
    """The same seed builds the same part, another seed another one, and dropout is drawn from torch's generator."""
    one, two = case.model(seed=0, perturbed=False), case.model(seed=0, perturbed=False)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        identical(b, a, f"{name} of a second build under the same seed")
    part = case.under_test(one)
    drawn = [p for p in part.parameters() if rms(p - p.mean()) > 0 and not _is_identity(p)]
    other = case.under_test(case.model(seed=1, perturbed=False))
    if drawn:
        moved = any(not torch.equal(a, b) for a, b in zip(part.parameters(), other.parameters(), strict=True))
        assert moved, "another seed builds the same random parameters"
    inputs = case.inputs(2, 9)
    runs = []
    for model in (one, two):
        with seeded(7):
            runs.append(case.run(model.train(), inputs))
    identical(runs[1], runs[0], "training outputs under the same seed")


def _is_identity(p: Tensor) -> bool:
    return p.dim() == 2 and p.shape[0] == p.shape[1] and torch.equal(p, torch.eye(len(p), dtype=p.dtype))


@check("state_dict")
def complete(case: Case) -> None:
    """Its state dict holds all that its function depends on: a part of another seed that loads it is equal."""
    one, two = case.model(seed=0).eval(), case.model(seed=1).eval()
    two.load_state_dict(one.state_dict(), strict=True)
    inputs = case.inputs(2, 9)
    with torch.no_grad():
        identical(case.run(two, inputs), case.run(one, inputs), "the output of a reloaded model")


@check("refuses")
def refuses(case: Case) -> None:
    """Unknown fields and impossible values are refused when the spec is checked, with the path."""
    for wrong in ({"no_such_field": 1}, *_wrong_values(case)):
        name = next(iter(wrong))
        _, problems = examine(case.spec.replace(**wrong), **case.given())
        assert problems, f"{wrong} was accepted"
        assert any(problem.path.startswith(name) for problem in problems), f"{wrong}: no error names the field"


def _wrong_values(case: Case) -> list[dict[str, Any]]:
    from variform.core.fields import fields_of

    return [{f.name: object()} for f in fields_of(case.part) if f.annotation is not Any]
