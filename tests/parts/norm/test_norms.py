import pytest
import torch

import variform as vf
from variform.parts.norm.norms import LayerNorm, RMSNorm, ScaleNorm


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


def test_layer_norm_is_its_formula() -> None:
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    for bias in (True, False):
        norm = LayerNorm(7, eps=1e-3, bias=bias).double()
        for parameter in norm.parameters():
            parameter.data.normal_()
        centred = x - x.sum(-1, keepdim=True) / 7
        expected = centred / ((centred**2).sum(-1, keepdim=True) / 7 + 1e-3) ** 0.5 * norm.weight
        expected = expected if norm.bias is None else expected + norm.bias
        torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_rms_norm_is_its_formula() -> None:
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    norm = RMSNorm(7, eps=1e-3).double()
    assert norm.weight is not None
    norm.weight.data.normal_()
    expected = x / ((x**2).sum(-1, keepdim=True) / 7 + 1e-3) ** 0.5 * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_scale_norm_is_its_formula_and_starts_at_unit_variance() -> None:
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    norm = ScaleNorm(7).double()
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(2, 3, dtype=torch.float64))
    norm.scale.data.fill_(0.3)
    expected = 0.3 * x / (x**2).sum(-1, keepdim=True) ** 0.5
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(norm(torch.zeros(1, 7, dtype=torch.float64)), torch.zeros(1, 7, dtype=torch.float64))


@pytest.mark.parametrize("norm", [LayerNorm(7), RMSNorm(7), ScaleNorm(7)], ids=lambda norm: norm.name)
def test_norms_give_the_type_they_get(norm: torch.nn.Module) -> None:
    """Float32 parameters do not widen a bfloat16 stream."""
    if isinstance(norm, LayerNorm):
        norm = norm.bfloat16()
    assert norm(torch.randn(2, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16
