import pytest
import torch

import variform as vf
from variform.parts.feedforward.mlp import MLP
from variform.parts.residual.scaled import DeepNormResidual, LayerScaleResidual, ScaledResidual, ScaledStreamResidual
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


def test_both_factors() -> None:
    x, branch = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(ScaledResidual(alpha=1.5, beta=0.25)(x, branch), 1.5 * x + 0.25 * branch)
    torch.testing.assert_close(ScaledResidual(beta=0.5)(x, branch), x + 0.5 * branch)
    torch.testing.assert_close(ScaledResidual(alpha=2.0)(x, branch), 2 * x + branch)


def test_deepnorm_takes_the_depth_of_its_stack() -> None:
    step = Sublayer.spec(body=MLP.spec(), norm=None, out_norm="layer_norm", residual="deepnorm")
    stack = vf.build(LayerStack.spec(layers=[step] * 6), dim=4)
    assert stack.layers[0].residual.alpha == pytest.approx(12**0.25)
    x, branch = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(stack.layers[0].residual(x, branch), 12**0.25 * x + branch)
    assert vf.build(DeepNormResidual.spec(alpha=2.5), depth=6).alpha == 2.5


def test_the_stream_has_one_learned_factor_a_feature() -> None:
    residual = ScaledStreamResidual(dim=3, alpha=2.0, beta=0.5).double()
    x, branch = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(residual(x, branch), 2 * x + 0.5 * branch)
    residual.scale.data = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(residual(x, branch), 2 * x * torch.tensor([1.0, 0.0, -2.0]).double() + 0.5 * branch)


def test_layer_scale_has_one_factor_a_feature() -> None:
    residual = LayerScaleResidual(dim=3, init=0.1).double()
    x, branch = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(residual(x, branch), x + 0.1 * branch)
    residual.gamma.data = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(residual(x, branch), x + branch * torch.tensor([1.0, 0.0, -2.0]).double())
