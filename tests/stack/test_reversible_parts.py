"""Every part that a reversible stack takes is computed again as it was: values and gradients of plain autograd."""

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.stack import reversible
from variform.stack.stack import LayerStack
from variform.testing.case import Case
from variform.testing.samples import Sample, all_samples

KINDS = ("attention", "bias", "feedforward", "layer", "memory", "mixer", "norm", "residual", "rotation", "stack")
SAMPLES = {sample.label: sample for sample in all_samples() if sample.spec.part.kind in KINDS}


def outcome(case: Case, model: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    """Two forward passes with dropout, then both backward passes at once."""
    inputs = case.inputs(2, 9)
    torch.manual_seed(5)
    outs = [case.run(model, inputs) for _ in range(2)]
    loss = sum((out.square() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() for out in outs)
    assert isinstance(loss, Tensor)
    return outs, list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_gradients_are_those_of_plain_autograd(sample: Sample) -> None:
    case = Case(sample)
    spec = case.host(case.setting(executor="reversible"))
    try:
        vf.resolve(spec)
    except vf.ConfigError as error:
        pytest.skip(f"refused: {error}")
    model = case.model(case.setting(executor="reversible")).train()
    if not any(isinstance(m, LayerStack) and m.executor == "reversible" for m in model.modules()):
        pytest.skip("its host has no choice of an executor")
    other = copy.deepcopy(model)
    outs, gradients = outcome(case, model)
    with mock.patch.object(reversible, "_reversed", reversible._in_turn):
        wanted_outs, wanted = outcome(case, other)
    for a, b in zip(outs, wanted_outs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for gradient, expected in zip(gradients, wanted, strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None and expected is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_few_parts_are_refused() -> None:
    """Residuals that change the stream, a sublayer that norms the sum, parts that publish for later layers."""
    refused = set()
    for sample in SAMPLES.values():
        case = Case(sample)
        try:
            vf.resolve(case.host(case.setting(executor="reversible")))
        except vf.ConfigError:
            refused.add(case.spec.name)
    residuals = {"deepnorm", "gated_multi", "gru", "hyper_connection", "mean_split", "orthogonal", "scaled_stream"}
    publishing = {"begin_history", "score_residual", "token_shift", "value_residual"}  # token_shift with three views
    assert refused == {"sublayer", *residuals, *publishing}
