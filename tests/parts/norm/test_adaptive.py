import pytest
import torch

import variform as vf
from variform.parts.norm.adaptive import AdaptiveNorm
from variform.parts.norm.norms import LayerNorm
from variform.parts.stream_ops.adaptive_branch import AdaptiveBranch


def test_the_condition_sets_the_gain() -> None:
    norm = AdaptiveNorm(5, 3, LayerNorm(5, gain=False, bias=False)).double()
    x, c = torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    plain = torch.nn.functional.layer_norm(x, (5,))
    torch.testing.assert_close(norm(x, c), plain)  # no effect at first
    norm.gain.weight.data.normal_()
    torch.testing.assert_close(norm(x, c), plain * (1 + c @ norm.gain.weight.T)[:, None])
    by_token = torch.randn(2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(norm(x, by_token), plain * (1 + by_token @ norm.gain.weight.T))


@pytest.mark.parametrize("shape", [None, (2, 4), (2, 3, 3), (3,)])
def test_a_condition_that_does_not_fit(shape: tuple[int, ...] | None) -> None:
    norm = AdaptiveNorm(5, 3, LayerNorm(5))
    with pytest.raises(vf.ShapeError, match="condition"):
        norm(torch.randn(2, 4, 5), None if shape is None else torch.randn(shape))


def test_the_condition_sets_the_scale_of_a_branch() -> None:
    branch = vf.build(AdaptiveBranch.spec(body="mlp"), dim=4, dim_condition=3).double()
    x, c = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    inner = branch.body(x, {})
    torch.testing.assert_close(branch(x, {"condition": c}), inner * torch.sigmoid(torch.tensor(-2.0).double()))
    branch.weight.data.normal_()
    scale = torch.sigmoid(c @ branch.weight.T + branch.bias)
    torch.testing.assert_close(branch(x, {"condition": c}), inner * scale[:, None])
