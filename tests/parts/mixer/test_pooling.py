"""The mixer `pooling` against sums over its windows."""

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.parts.mixer.pooling import Pooling


def naive(x: Tensor, grid: tuple[int, int], size: int, stride: int, padding: int) -> Tensor:
    tokens = x.unflatten(1, grid)
    out = torch.empty_like(tokens)
    for row in range(grid[0]):
        for column in range(grid[1]):
            rows, columns = (nearest(p, n, size, stride, padding) for p, n in zip((row, column), grid, strict=True))
            out[:, row, column] = tokens[:, rows][:, :, columns].mean((1, 2)) - tokens[:, row, column]
    return out.flatten(1, 2)


def nearest(place: int, length: int, size: int, stride: int, padding: int) -> list[int]:
    """The tokens of the window whose centre is nearest, the earlier one of two."""
    starts = list(range(-padding, length + padding - size + 1, stride))
    start = min(starts, key=lambda s: (abs(s + (size - 1) / 2 - place), s))
    return [t for t in range(start, start + size) if 0 <= t < length]


@pytest.mark.parametrize(
    ("grid", "size", "stride", "padding"),
    [
        (None, 3, 1, None),
        (None, 2, 1, None),
        (None, 5, 1, 2),
        (None, 3, 2, None),
        (None, 3, 1, 0),
        (None, 2, 2, 0),
        (None, 4, 3, 1),
        ((3, 5), 3, 1, None),
        ((4, 2), 2, 2, 1),
    ],
)
def test_equals_sums_over_windows(grid: tuple[int, int] | None, size: int, stride: int, padding: int | None) -> None:
    mixer = vf.build(Pooling.spec(pool_size=size, stride=stride, padding=padding, grid=grid), dim=3)
    shape = grid or (5, 5)
    x = torch.randn(2, shape[0] * shape[1], 3, dtype=torch.float64, requires_grad=True)
    wanted = naive(x, shape, size, stride, size // 2 if padding is None else padding)
    torch.testing.assert_close(mixer(x, {}), wanted, rtol=0, atol=1e-12)
    weights = torch.randn_like(x)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (mixer(x, {}), wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_other_lengths_are_refused_with_the_nearest() -> None:
    x = torch.zeros(1, 12, 3)
    with pytest.raises(ShapeError, match=r"square number of tokens, and was given 12; the nearest are 9 and 16"):
        vf.build(Pooling.spec(), dim=3)(x, {})
    with pytest.raises(ShapeError, match=r"grid of 2 x 5 = 10 tokens, and was given 12"):
        vf.build(Pooling.spec(grid=(2, 5)), dim=3)(x, {})
    with pytest.raises(ShapeError, match="do not fit a grid of 3 x 4"):
        vf.build(Pooling.spec(grid=(3, 4), pool_size=7, padding=0), dim=3)(x, {})
    with pytest.raises(ConfigError, match="at most half of pool_size = 3"):
        vf.build(Pooling.spec(padding=2), dim=3)
    assert vf.build(Pooling.spec(grid=(3, 4)), dim=3)(x, {}).shape == x.shape


def test_dropout() -> None:
    mixer, x = vf.build(Pooling.spec(dropout=0.5), dim=3), torch.randn(1, 16, 3)
    assert bool((mixer(x, {}) == 0).any())
    assert not bool((mixer.eval()(x, {}) == 0).any())
