"""The feedforwards against their formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.parts.activation import ACTIVATIONS
from variform.parts.feedforward.mlp import GLU, MLP

FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: x * (x > 0),
    "relu_squared": lambda x: (x * (x > 0)) ** 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "none": lambda x: x,
}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("activation", FORMULAS)
def test_mlp_is_its_formula(activation: str) -> None:
    mlp = vf.build(MLP.spec(hidden=5, activation=activation), dim=3).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    inner = FORMULAS[activation](x @ mlp.up.weight.T + mlp.up.bias)
    torch.testing.assert_close(mlp(x, {}), inner @ mlp.down.weight.T + mlp.down.bias, **EXACT)


@pytest.mark.parametrize("activation", FORMULAS)
def test_glu_is_its_formula(activation: str) -> None:
    glu = vf.build(GLU.spec(hidden=5, activation=activation), dim=3).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    inner = FORMULAS[activation](x @ glu.gate.weight.T) * (x @ glu.up.weight.T)
    torch.testing.assert_close(glu(x, {}), inner @ glu.down.weight.T, **EXACT)


def test_all_named_activations_with_a_formula_here_exist() -> None:
    assert set(FORMULAS) <= set(ACTIVATIONS)


def test_widths() -> None:
    assert vf.build(MLP.spec(), dim=6).up.weight.shape == (24, 6)
    assert vf.build(MLP.spec(mult=1.5), dim=6).up.weight.shape == (9, 6)
    assert vf.build(MLP.spec(hidden=7, mult=1.5), dim=6).up.weight.shape == (7, 6)
    assert vf.build(GLU.spec(), dim=6).up.weight.shape == (16, 6)


def test_a_norm_on_the_inner_features() -> None:
    mlp = vf.build(MLP.spec(hidden=5, norm="rms_norm"), dim=3).double()
    mlp.norm.weight.data.normal_()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    inner = FORMULAS["gelu"](x @ mlp.up.weight.T + mlp.up.bias)
    inner = inner / (inner.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mlp.norm.weight
    torch.testing.assert_close(mlp(x, {}), inner @ mlp.down.weight.T + mlp.down.bias, **EXACT)


@pytest.mark.parametrize("part", [MLP, GLU])
def test_initial_weights_shrink_with_the_residual_writes(part: type[vf.Part]) -> None:
    built = vf.build(part.spec(hidden=400, bias=True), dim=100, init_std=0.02, writes=16)
    assert built.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert built.down.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert not built.down.bias.any()
