import pytest
import torch

from variform.parts.norm.clamped import ClampedRMSNorm


@pytest.mark.parametrize("per_feature", [True, False])
def test_formula(per_feature: bool) -> None:
    norm = ClampedRMSNorm(dim=6, eps=0.5, per_feature=per_feature).double()
    torch.nn.init.normal_(norm.gain)
    x = torch.randn(3, 5, 6, dtype=torch.float64) * torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1)
    expected = norm.gain * x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=0.5)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_zeros_give_zeros_and_finite_gradients() -> None:
    norm = ClampedRMSNorm(dim=4)
    x = torch.zeros(2, 4, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_half_precision_does_not_overflow() -> None:
    x = torch.full((1, 8), 3e4, dtype=torch.float16)
    torch.testing.assert_close(ClampedRMSNorm(dim=8)(x), torch.ones(1, 8, dtype=torch.float16))
