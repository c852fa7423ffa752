"""Stochastic depth as a step: rows by mean, nothing in eval."""

import pytest
import torch

import variform as vf
from variform.parts.op.drop_path import DropPathOp


def test_rows_are_zeroed_or_scaled() -> None:
    torch.manual_seed(0)
    op, x = DropPathOp(p=0.3), torch.randn(4000, 3, 2, dtype=torch.float64)
    y = op(x)
    kept = y.abs().sum((1, 2)) > 0
    torch.testing.assert_close(y[kept], x[kept] / 0.7)
    assert abs(kept.double().mean().item() - 0.7) < 0.03
    assert torch.equal(op.eval()(x), x)
    assert DropPathOp(p=0.0).train()(x) is x


def test_the_probability_is_one() -> None:
    with pytest.raises(vf.ConfigError, match="less than 1"):
        vf.build(DropPathOp.spec(p=1.0))
