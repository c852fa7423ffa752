import torch

from variform.parts.residual.scaled import ScaledResidual


def test_both_factors() -> None:
    x, branch = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(ScaledResidual(alpha=1.5, beta=0.25)(x, branch), 1.5 * x + 0.25 * branch)
    torch.testing.assert_close(ScaledResidual(beta=0.5)(x, branch), x + 0.5 * branch)
    torch.testing.assert_close(ScaledResidual(alpha=2.0)(x, branch), 2 * x + branch)
