"""Weights of rows: each row runs with its own, steps are those of plain gradient descent, outer gradients flow."""

import pytest
import torch
from torch import nn

from tests.stack.test_remembering import ids, model
from variform.errors import ConfigError
from variform.wrappers.fast_weights import FastWeights, orthogonalised


def test_each_row_runs_with_its_own_weights() -> None:
    layer = nn.Linear(3, 3).double()
    fast = FastWeights({"a": layer}, [("a", "a")])
    weights = fast.begin(4)
    weights["a"]["weight"] = torch.randn(4, 3, 3, dtype=torch.float64)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    with fast.used(weights):
        found = layer(x)
    expected = torch.einsum("bij,blj->bli", weights["a"]["weight"], x) + layer.bias
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_a_part_of_a_model_with_its_streams() -> None:
    net, x = model(2).eval(), ids(3)
    body = net.stacks[0].layers[1].sublayers[0].body  # type: ignore[union-attr,index]
    fast = FastWeights({"body": body}, [("body", "body")])  # type: ignore[dict-item]
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[1, 7:] = False
    with fast.used(fast.begin(3)):
        found = net(x, valid=valid)
    torch.testing.assert_close(found[valid], net(x, valid=valid)[valid])


def test_a_step_is_gradient_descent_on_the_loss_of_the_row() -> None:
    layer = nn.Linear(3, 1).double()
    fast = FastWeights({"a": layer}, [("a", "a")], lr=0.1, decay=0.2)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    weights = fast.begin(2)
    with fast.used(weights):
        losses = layer(x).square().mean((1, 2))
    stepped = fast.stepped(weights, losses, graph=False)
    for row in range(2):
        own = layer(x[row]).square().mean()
        for name, p in layer.named_parameters():
            (gradient,) = torch.autograd.grad(own, p, retain_graph=True)
            expected = p - 0.1 * gradient - 0.1 * 0.2 * p
            torch.testing.assert_close(stepped["a"][name][row], expected)


def test_the_outer_loss_learns_where_to_begin() -> None:
    layer = nn.Linear(3, 3, bias=False).double()
    fast = FastWeights({"a": layer}, [("a", "a")], lr=0.1, decay=0.0)
    x = torch.randn(1, 4, 3, dtype=torch.float64)

    def after(weight: torch.Tensor) -> torch.Tensor:
        weights = {"a": {"weight": weight.unsqueeze(0)}}
        with fast.used(weights):
            losses = layer(x).pow(4).mean((1, 2))
        weights = fast.stepped(weights, losses, graph=True)
        with fast.used(weights):
            return layer(x).square().sum()

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(after, (weight,))


def test_another_module_learns_from_a_source() -> None:
    one, other = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    fast = FastWeights({"s": one, "t": other}, [("s", "t")], lr=1.0, decay=0.0)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    weights = fast.begin(2)
    with fast.used(weights):
        losses = one(x).square().sum((1, 2))
    stepped = fast.stepped(weights, losses, graph=False)
    torch.testing.assert_close(stepped["s"]["weight"], weights["s"]["weight"])
    assert (stepped["t"]["weight"] - weights["t"]["weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4, 6)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert ((values > 0.5) & (values < 1.4)).all()


def test_modules_that_do_not_match_are_refused() -> None:
    with pytest.raises(ConfigError, match="same shapes"):
        FastWeights({"s": nn.Linear(3, 3), "t": nn.Linear(3, 4)}, [("s", "t")])
    with pytest.raises(ConfigError, match="without parameters"):
        FastWeights({"s": nn.Identity()}, [("s", "s")])
