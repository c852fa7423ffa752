import pytest
import torch

import variform as vf
from variform.core.dims import parse_shape
from variform.errors import ShapeError
from variform.parts.op.rotary import Rotary


def test_scores_depend_on_distance_alone_and_ends_are_aligned() -> None:
    op = Rotary(features=6, max_len=40).double()
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    queries, keys = op(q.expand(5, 8)), op(k.expand(12, 8))
    scores = queries @ keys.T
    for shift in range(1, 5):
        torch.testing.assert_close(scores[shift:, shift:], scores[:-shift, :-shift], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores[-1, -1], q @ k, rtol=1e-10, atol=1e-10)


def test_meta_build_gets_its_table() -> None:
    op = vf.build(Rotary.spec(features=4, max_len=8), device="meta")
    vf.materialise(op, "cpu")
    assert torch.equal(op.cos, Rotary(features=4, max_len=8).cos)


def test_low_precision_stays() -> None:
    assert Rotary(features=4).bfloat16()(torch.randn(2, 3, 8).bfloat16()).dtype == torch.bfloat16
    assert Rotary(features=4)(torch.randn(2, 3, 8).bfloat16()).dtype == torch.bfloat16


def test_limits() -> None:
    with pytest.raises(vf.ConfigError, match="even"):
        vf.build(Rotary.spec(features=3))
    with pytest.raises(ShapeError, match="table of 4 rows"):
        Rotary(features=2, max_len=4)(torch.zeros(5, 2))
    with pytest.raises(ShapeError, match="table has 4 rows"):
        Rotary.shapes({"features": 2, "max_len": 4}, (parse_shape(["B", 5, 2]),))
    with pytest.raises(ShapeError, match="6 features are to be rotated"):
        Rotary.shapes({"features": 6, "max_len": 4}, (parse_shape(["B", "L", 4]),))
