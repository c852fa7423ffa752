"""Activations, against their formulas."""

import pytest
import torch

from variform.parts.activation import ACTIVATIONS


def test_smelu_is_a_parabola_between_two_lines() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    expected = [0.0 if v < -2 else v if v > 2 else (v + 2) ** 2 / 8 for v in x.tolist()]
    assert ACTIVATIONS["smelu"](x).tolist() == pytest.approx(expected)


def test_star_relu_keeps_mean_and_variance() -> None:
    y = ACTIVATIONS["star_relu"](torch.randn(1_000_000))
    assert y.mean().item() == pytest.approx(0, abs=0.01)
    assert y.var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_gradients_are_finite(name: str) -> None:
    x = torch.linspace(-3, 3, 13).requires_grad_()
    ACTIVATIONS[name](x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
