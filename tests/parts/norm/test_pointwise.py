import torch

from variform.parts.norm.pointwise import Derf, DynamicTanh


def drawn(norm: torch.nn.Module) -> torch.nn.Module:
    for parameter in norm.double().parameters():
        parameter.data.normal_()
    return norm


def test_they_are_their_formulas() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    tanh, derf = drawn(DynamicTanh(5)), drawn(Derf(5))
    torch.testing.assert_close(tanh(x), tanh.weight * torch.tanh(tanh.alpha * x) + tanh.bias)
    torch.testing.assert_close(derf(x), derf.weight * torch.erf(derf.alpha * x + derf.shift) + derf.bias)


def test_they_start_as_told() -> None:
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(DynamicTanh(5, alpha=0.3)(x), torch.tanh(0.3 * x))
    torch.testing.assert_close(Derf(5, alpha=0.3, shift=0.1)(x), torch.erf(0.3 * x + 0.1))
