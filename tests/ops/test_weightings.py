"""Weights scaled by what heads mix, where scores that were added hide pairs."""

import pytest
import torch

from variform.ops.attention import Call, attention
from variform.ops.learned_scores import AddedScores
from variform.ops.weightings import ScaledWeights


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_hidden_products_have_no_part_in_what_scales_weights(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    added = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    hides = torch.zeros(1, 3, 5, 5, dtype=torch.bool)
    hides[:, 0, :, 2], hides[:, 1, 3, 1:4] = True, True
    given = AddedScores(added.masked_fill(hides, -torch.inf))
    out = attention(Call(q, k, v, scores=(given,), weights=ScaledWeights(weight)), backend=backend)
    scores = q @ k.mT / 2 + added
    mixed = torch.einsum("hg,bgij->bhij", weight, scores.masked_fill(hides, 0.0))
    expected = (scores.masked_fill(hides, -torch.inf).softmax(-1) * mixed) @ v
    torch.testing.assert_close(out, expected)
    inputs = (q, k, v, weight)
    for one, other in zip(
        torch.autograd.grad(out.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
