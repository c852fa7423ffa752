import torch

import variform as vf
from variform.parts.feedforward.mlp import MLP
from variform.parts.stream_ops.padding import ZeroPadding


def test_padded_places_hold_zeros() -> None:
    part = vf.build(ZeroPadding.spec(body=MLP.spec()), dim=4).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    valid = torch.tensor([[True, False, True], [True, True, True]])
    out, plain = part(x, {"valid": valid}), part(x, {})
    assert torch.equal(out[0, 1], torch.zeros(4, dtype=torch.float64))
    assert torch.equal(out[valid], plain[valid])
    x[0, 1] = torch.nan  # what padding holds must not spread, in backward either
    leaf = x.clone().requires_grad_()
    part(leaf, {"valid": valid}).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[valid].isfinite().all()
