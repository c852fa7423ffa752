"""The linear map: initial scale, and parameters that other tools have put in other places."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from variform.parts.linear import Linear


def test_initial_scale() -> None:
    wide = Linear(400, 500, std=0.02, writes=4)
    assert abs(wide.weight.std().item() - 0.01) < 2e-4
    assert not wide.bias.any()
    torch.manual_seed(1)
    ours = Linear(7, 5)
    torch.manual_seed(1)
    assert torch.equal(ours.weight, nn.Linear(7, 5).weight)


def test_parametrised_pruned_and_replaced_parameters_are_honoured() -> None:
    x = torch.randn(3, 6)
    normed = parametrizations.weight_norm(Linear(6, 4))
    normed.parametrizations.weight.original0.data.mul_(2)
    torch.testing.assert_close(normed(x), x @ normed.weight.T + normed.bias)
    pruned = prune.l1_unstructured(Linear(6, 4), "weight", amount=0.5)
    torch.testing.assert_close(pruned(x), x @ pruned.weight.T + pruned.bias)
    assert (pruned.weight == 0).sum() == 12
    late = Linear(6, 4, bias=False)
    late.bias = nn.Parameter(torch.ones(4))
    torch.testing.assert_close(late(x), x @ late.weight.T + 1)
    swapped = torch.func.functional_call(late, {"weight": torch.zeros(4, 6)}, (x,))
    assert torch.equal(swapped, torch.ones(3, 4))
