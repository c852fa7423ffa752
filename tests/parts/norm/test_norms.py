import pytest
import torch

import variform as vf
from variform.parts.norm.norms import RMSNorm


def test_a_tiny_eps_makes_it_an_l2_norm() -> None:
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    expected = torch.nn.functional.normalize(x, dim=-1) * 7**0.5
    torch.testing.assert_close(RMSNorm(7, eps=1e-24, gain=False)(x), expected)
    assert torch.equal(RMSNorm(7, eps=1e-24)(torch.zeros(2, 7)), torch.zeros(2, 7))


def test_without_a_gain_there_is_no_parameter() -> None:
    assert list(RMSNorm(7, gain=False).parameters()) == []


def test_a_gain_for_each_head() -> None:
    norm = RMSNorm(4, per_head=3).double()
    assert norm.weight is not None
    norm.weight.data = torch.randn(3, 1, 4, dtype=torch.float64)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    for head in range(3):
        one = RMSNorm(4).double()
        assert one.weight is not None
        one.weight.data = norm.weight.data[head, 0]
        torch.testing.assert_close(norm(x)[:, head], one(x[:, head]))


def test_heads_without_a_gain_are_refused() -> None:
    with pytest.raises(vf.ConfigError, match=r"per_head: .*gain is off"):
        vf.build(RMSNorm.spec(dim=4, gain=False, per_head=3))
