"""Skips that are put aside and joined again, and inputs that are injected."""

import pytest
import torch

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.parts.feedforward.mlp import MLP
from variform.parts.stream_ops.history import BeginHistory, JoinSkip, KeepSkip
from variform.parts.stream_ops.inject import InjectInput
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

FACTS = {"dim": 6}
X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_last_join_meets_the_first_skip() -> None:
    step = Sublayer.spec(body=MLP.spec(), norm=None)
    layers = [BeginHistory.spec(stream="skips"), KeepSkip.spec(), step, KeepSkip.spec(), step]
    stack = vf.build(LayerStack.spec(layers=[*layers, JoinSkip.spec(), step, JoinSkip.spec()]), **FACTS).double()
    _, _, one, _, two, join_two, three, join_one = list(stack.layers)
    a = one(X, {})
    b = torch.cat((a, two(a, {})), -1) @ join_two.combine.weight.T
    expected = torch.cat((X, three(b, {})), -1) @ join_one.combine.weight.T
    torch.testing.assert_close(stack(X, {}), expected, rtol=0, atol=1e-12)


def test_a_join_without_a_skip_is_refused() -> None:
    stack = vf.build(LayerStack.spec(layers=[BeginHistory.spec(stream="skips"), JoinSkip.spec()]), **FACTS).double()
    with pytest.raises(ShapeError, match="no skip is left"):
        stack(X, {})


def test_what_is_injected_reaches_branches_and_not_the_stream() -> None:
    layers = [InjectInput.spec(gate=True), Sublayer.spec(body=MLP.spec()), Sublayer.spec(body=MLP.spec(), norm=None)]
    stack = vf.build(LayerStack.spec(layers=layers), **FACTS).double()
    inject, first, second = list(stack.layers)
    given = torch.randn(2, 1, 6, dtype=torch.float64)
    added = (X @ inject.project.weight.T + given) * torch.sigmoid(X @ inject.gate.weight.T)
    h = X + first.body(first.norm(X + added), {})
    expected = h + second.body(h + added, {})
    torch.testing.assert_close(stack(X, {"injected": given}), expected, rtol=0, atol=1e-12)


def test_a_model_takes_what_is_injected() -> None:
    spec = Transformer.spec(embedding=None, stacks=[LayerStack.spec(layers=[Sublayer.spec(body=MLP.spec())])], dim=6)
    model = vf.build(spec).double()
    (step,) = next(model.stacks.in_order()).layers
    given = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = X + step.body(step.norm(X + given), {})
    torch.testing.assert_close(model(X, injected=given), expected, rtol=0, atol=1e-12)
    for wrong in (given[:, :3], given[0], given[:1]):
        with pytest.raises(ShapeError, match="what is injected is floats of shape"):
            model(X, injected=wrong)


def test_an_injection_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is injected"):
        vf.resolve(InjectInput.spec(project=False), **FACTS)
