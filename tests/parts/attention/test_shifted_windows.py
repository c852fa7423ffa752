"""Attention within the windows of a grid, against a plain softmax with the rule written out, in float64."""

from typing import Any

import pytest
import torch

import variform as vf
from variform.parts.attention.shifted_windows import ShiftedWindowAttention
from variform.parts.kinds import Sides


def sees(i: int, j: int, columns: int, window: int, shift: int) -> bool:
    def place(p: int) -> tuple[int, int]:
        return tuple((axis - shift) // window for axis in divmod(p, columns))  # type: ignore[return-value]

    return place(i) == place(j)


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa", "windows"])
@pytest.mark.parametrize(("window", "shift"), [(2, 0), (2, 1), (3, 2)])
def test_it_is_softmax_within_windows(window: int, shift: int, backend: str) -> None:
    rows, columns = 2 * window, 3 * window
    tokens = rows * columns
    q, k, v = (torch.randn(2, 4, tokens, 3, dtype=torch.float64) for _ in range(3))
    allowed = torch.tensor([[sees(i, j, columns, window, shift) for j in range(tokens)] for i in range(tokens)])
    weights = torch.where(allowed, q @ k.transpose(-1, -2) * 0.7, -torch.inf).softmax(-1)
    spec = ShiftedWindowAttention.spec(grid=(rows, columns), window=window, shift=shift, scale=0.7, backend=backend)
    torch.testing.assert_close(vf.build(spec)(q, k, v, Sides()), weights @ v, rtol=1e-10, atol=1e-10)


def test_dropout_and_the_default_scale() -> None:
    q, k, v = (torch.randn(1, 1, 16, 4) for _ in range(3))
    plain, dropping = (vf.build(ShiftedWindowAttention.spec(grid=(4, 4), window=2, dropout=p)) for p in (0.0, 0.5))
    given = vf.build(ShiftedWindowAttention.spec(grid=(4, 4), window=2, scale=0.5))(q, k, v, Sides())
    assert torch.equal(plain(q, k, v, Sides()), given)
    assert not torch.allclose(dropping(q, k, v, Sides()), given)
    assert torch.equal(dropping.eval()(q, k, v, Sides()), given)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grid": (4, 5)}, "window: windows must tile the grid's 5 columns"),
        ({"grid": (3, 4)}, "window: windows must tile the grid's 3 rows"),
        ({"shift": 2}, "shift: must lie below the window of 2"),
        ({"backend": "window"}, "backend: there is no such attention backend.*windows"),
        ({"causal": True}, "causal"),
    ],
)
def test_mistakes(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(vf.ConfigError, match=words):
        vf.build({"part": "attention/shifted_windows", "grid": (4, 4), "window": 2, **fields})


def test_tokens_fill_the_grid() -> None:
    part = vf.build(ShiftedWindowAttention.spec(grid=(4, 4), window=2))
    with pytest.raises(vf.ShapeError, match="a grid of 4 x 4 = 16 tokens, and was given 9"):
        part(*(torch.randn(1, 1, 9, 4) for _ in range(3)), Sides())


def test_without_a_grid_squares_are_taken() -> None:
    q, k, v = (torch.randn(1, 1, 16, 4) for _ in range(3))
    given, free = (vf.build(ShiftedWindowAttention.spec(grid=grid, window=2)) for grid in ((4, 4), None))
    assert torch.equal(free(q, k, v, Sides()), given(q, k, v, Sides()))
    for tokens, words in ((15, "needs a square number"), (25, "do not tile 5 x 5 tokens.*has 16")):
        with pytest.raises(vf.ShapeError, match=words):
            free(*(torch.randn(1, 1, tokens, 4) for _ in range(3)), Sides())
