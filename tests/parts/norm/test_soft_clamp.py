import torch

import variform as vf
from variform.parts.norm.soft_clamp import SoftClamp


def test_bounds_and_norms() -> None:
    x = 100 * torch.randn(2, 5, 6, dtype=torch.float64)
    bounded = 3.0 * torch.tanh(x / 3.0)
    torch.testing.assert_close(SoftClamp(3.0)(x), bounded)
    part = vf.build(SoftClamp.spec(value=3.0, norm="layer_norm"), dim=6).double()
    torch.testing.assert_close(part(x), part.norm(bounded))
