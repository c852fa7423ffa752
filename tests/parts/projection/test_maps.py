"""Maps of features: what they begin as and what they compute."""

import pytest
import torch

import variform as vf
from variform.errors import ConfigError
from variform.parts.projection.maps import (
    GatedProjection,
    HeadOrder,
    IdentityProjection,
    LinearProjection,
    LowRankProjection,
)

SIZES = {"inputs": 6, "outputs": 4}


def test_formulas() -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    linear = vf.build(LinearProjection.spec(bias=True, offset=2.0), **SIZES).double()
    torch.testing.assert_close(linear(x), x @ linear.out.weight.T + 2.0)
    low = vf.build(LowRankProjection.spec(rank=2, activation="relu"), **SIZES).double()
    torch.testing.assert_close(low(x), (x @ low.down.weight.T).relu() @ low.out.weight.T)
    gated = vf.build(GatedProjection.spec(), **SIZES).double()
    value, gate = (x @ gated.out.weight.T).chunk(2, -1)
    torch.testing.assert_close(gated(x), value * gate.sigmoid())


def test_maps_that_begin_at_zero() -> None:
    x = torch.randn(3, 6)
    for spec in (LinearProjection.spec(zero=True), LowRankProjection.spec(rank=2, zero=True)):
        assert not vf.build(spec, **SIZES)(x).any()


def test_heads_go_out_in_another_order() -> None:
    x = torch.randn(2, 5, 6)
    part = vf.build(HeadOrder.spec(order=(2, 0, 1)), inputs=6, outputs=6)
    assert torch.equal(part(x), x[..., [4, 5, 0, 1, 2, 3]])
    for order, outputs, message in (
        ((0, 0, 1), 6, "equal pieces"),
        ((1, 0), 4, "must go out"),
        ((3, 1, 2, 0), 6, "eq"),
    ):
        with pytest.raises(ConfigError, match=message):
            vf.build(HeadOrder.spec(order=order), inputs=6, outputs=outputs)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="6 features that come in must go out"):
        vf.build(IdentityProjection.spec(), **SIZES)
    with pytest.raises(ConfigError, match="bias is off"):
        vf.build(LinearProjection.spec(offset=1.0), **SIZES)
