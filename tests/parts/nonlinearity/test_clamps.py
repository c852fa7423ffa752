import torch
from torch.nn import functional as F

from variform.parts.nonlinearity.clamps import SoftClamp, SoftClamped

X = torch.linspace(-9, 9, 37, dtype=torch.float64)


def test_a_soft_clamp_is_bounded_and_the_identity_near_zero() -> None:
    y = SoftClamp(2.5)(X)
    torch.testing.assert_close(y, 2.5 * torch.tanh(X / 2.5))
    assert y.abs().max() < 2.5
    small = 1e-4 * X
    torch.testing.assert_close(SoftClamp(2.5)(small), small, rtol=1e-6, atol=1e-12)


def test_a_far_bound_leaves_the_activations_as_they_are() -> None:
    torch.testing.assert_close(SoftClamped(1e6, "gelu")(X), F.gelu(X), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(SoftClamped(1e6, "silu")(X), F.silu(X), rtol=1e-9, atol=1e-9)


def test_a_near_bound_holds_the_linear_factor_alone() -> None:
    expected = 0.7 * torch.tanh(X / 0.7) * torch.sigmoid(X)
    torch.testing.assert_close(SoftClamped(0.7, "silu")(X), expected)
    assert SoftClamped(0.7, "gelu")(X).max() < 0.7
