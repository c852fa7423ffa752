"""Rotary positions against complex numbers."""

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ShapeError
from variform.parts.position.rotary import RotaryRotation


def turned(x: Tensor, positions: Tensor, dim: int, layout: str, base: float = 10000.0, factor: float = 1.0) -> Tensor:
    """The first `dim` features of x [B, H, L, D] turned by the formula, as complex numbers in float64."""
    rotated = x[..., :dim]
    pairs = rotated.unflatten(-1, (-1, 2)) if layout == "interleaved" else torch.stack(rotated.chunk(2, -1), -1)
    speeds = base ** (-2 * torch.arange(dim // 2, dtype=torch.float64) / dim)
    angles = positions.double()[..., None] / factor * speeds
    angles = angles if angles.dim() == 2 else angles[:, None]
    out = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles))
    flat = out.flatten(-2) if layout == "interleaved" else torch.cat(out.unbind(-1), -1)
    return torch.cat((flat, x[..., dim:]), -1)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("dim", [2, 6, 8])
@pytest.mark.parametrize("max_seq_len", [40, None])
def test_it_is_its_formula(layout: str, dim: int, max_seq_len: int | None) -> None:
    spec = RotaryRotation.spec(dim_head=8, rotary_dim=dim, layout=layout, max_seq_len=max_seq_len)
    part = vf.build(spec).double()
    q, k = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.randn(2, 1, 5, 8, dtype=torch.float64)
    for positions in (None, torch.arange(5) + 30, torch.randint(0, 40, (2, 5))):
        given = torch.arange(5) if positions is None else positions
        for got, x in zip(part(q, k, positions, positions), (q, k), strict=True):
            torch.testing.assert_close(got, turned(x, given, dim, layout), rtol=1e-10, atol=1e-10)


def test_scores_depend_on_distances_alone() -> None:
    part = vf.build(RotaryRotation.spec(dim_head=8, max_seq_len=100)).double()
    q, k = torch.randn(1, 1, 4, 8, dtype=torch.float64), torch.randn(1, 1, 4, 8, dtype=torch.float64)
    near, far = (part(q, k, torch.arange(4) + start, torch.arange(4) + start) for start in (0, 90))
    torch.testing.assert_close(near[0] @ near[1].mT, far[0] @ far[1].mT, rtol=1e-10, atol=1e-10)


def test_interpolation_divides_positions_and_ntk_raises_the_base() -> None:
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    slow = vf.build(RotaryRotation.spec(dim_head=8, max_seq_len=9, interpolation=4.0)).double()
    torch.testing.assert_close(slow(x, x, None, None)[0], turned(x, torch.arange(5), 8, "interleaved", factor=4.0))
    for length in (9, None):
        wide = vf.build(RotaryRotation.spec(dim_head=8, max_seq_len=length, ntk=3.0)).double()
        expected = turned(x, torch.arange(5), 8, "interleaved", base=10000.0 * 3.0 ** (8 / 6))
        torch.testing.assert_close(wide(x, x, torch.arange(5), torch.arange(5))[0], expected)


def test_half_precision_models_keep_exact_tables() -> None:
    part = vf.build(RotaryRotation.spec(dim_head=8, max_seq_len=3000)).bfloat16()
    x = torch.randn(1, 1, 3000, 8)
    got = part(x.bfloat16(), x.bfloat16(), None, None)[0]
    assert got.dtype == torch.bfloat16
    exact = turned(x.bfloat16().double(), torch.arange(3000), 8, "interleaved")
    assert (got.double() - exact).abs().max() < 0.05


def test_longer_sequences_than_the_tables_are_computed() -> None:
    part = vf.build(RotaryRotation.spec(dim_head=8, max_seq_len=4)).double()
    x = torch.randn(1, 1, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(part(x, x, None, None)[0], turned(x, torch.arange(9), 8, "interleaved"))


def test_a_position_beyond_the_tables_is_an_error() -> None:
    part = vf.build(RotaryRotation.spec(dim_head=8, max_seq_len=4))
    x = torch.randn(1, 1, 2, 8)
    with pytest.raises(ShapeError, match="4"):
        part(x, x, torch.tensor([3, 4]), torch.tensor([3, 4]))


def test_impossible_sizes() -> None:
    for fields, words in (
        ({"dim_head": 7}, "nearest: 6 or 8"),
        ({"rotary_dim": 10}, "more than the 8 features"),
        ({"rotary_dim": 3}, "even number"),
        ({"rotary_dim": 2, "ntk": 2.0}, "more than two"),
    ):
        with pytest.raises(vf.ConfigError, match=words):
            vf.build(RotaryRotation.spec(**{"dim_head": 8, "max_seq_len": 4, **fields}))
