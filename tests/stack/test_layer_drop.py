import torch

import variform as vf
from variform.parts.feedforward.mlp import MLP
from variform.stack.sublayer import Sublayer


def test_the_step_is_left_out_for_all_rows_and_nothing_is_scaled() -> None:
    step = vf.build(Sublayer.spec(body=MLP.spec(), out_norm="layer_norm", layer_drop=0.3), dim=8)
    x = torch.randn(4, 3, 8)
    whole = step.eval()(x, {})
    step.train()
    outs = [step(x, {}) for _ in range(300)]
    left_out = sum(torch.equal(out, x) for out in outs)
    assert all(torch.equal(out, x) or torch.equal(out, whole) for out in outs)
    assert 60 < left_out < 120  # 90 of 300 on average, six standard deviations wide


def test_every_parameter_keeps_a_gradient() -> None:
    step = vf.build(Sublayer.spec(body=MLP.spec(), layer_drop=0.99), dim=8).train()
    step(torch.randn(4, 3, 8), {}).sum().backward()
    assert all(param.grad is not None for param in step.parameters())
