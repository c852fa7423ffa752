import pytest
import torch
from torch import Tensor

import variform as vf
from tests.parts.op.agree import built, same
from variform.core.dims import parse_shape
from variform.errors import ShapeError
from variform.parts.op.shift import ShiftOp, shift_rows


def reference(x: Tensor, pieces: list[tuple[int, int, int]]) -> Tensor:
    """Row by row."""
    length = x.shape[-2]
    columns = []
    for start, stop, by in pieces:
        rows = [
            x[..., t + by, start:stop] if 0 <= t + by < length else x[..., 0, start:stop] * 0 for t in range(length)
        ]
        columns.append(torch.stack(rows, -2))
    return torch.cat(columns, -1)


@pytest.mark.parametrize("shape", [("B", "L", 9), ("B", 3, "L", 9), ("L", 9)])
@pytest.mark.parametrize(
    "pieces",
    [
        [(0, 4, -1), (4, 9, 0)],
        [(0, 9, -2)],
        [(2, 5, 3), (2, 5, -3), (0, 1, 0)],
        [(-5, -1, -1)],
        [(0, 9, -7), (0, 9, 7), (0, 2, -50), (0, 2, 50)],
    ],
)
def test_rows_move_and_zeros_come_in(shape: tuple[int | str, ...], pieces: list[tuple[int, int, int]]) -> None:
    _, (x,), (y,) = built(ShiftOp.spec(pieces=pieces), shape, B=2, L=7)
    same(y, reference(x, pieces), x)


def test_minus_one_is_the_token_before() -> None:
    x = torch.arange(1.0, 6).view(1, 5, 1)
    assert shift_rows(x, -1).flatten().tolist() == [0, 1, 2, 3, 4]
    assert shift_rows(x, 2).flatten().tolist() == [3, 4, 5, 0, 0]


def test_low_precision_stays() -> None:
    assert ShiftOp(pieces=((0, 2, -1),))(torch.randn(1, 3, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("pieces", "shape", "words"),
    [
        ([(0, 10, -1)], ["B", "L", 9], "features 0 to 10 .* there are 9"),
        ([(4, 4, -1)], ["B", "L", 9], "features 4 to 4"),
        ([(5, 4, -1)], ["B", "L", 9], "features 5 to 4"),
        ([(-10, 4, -1)], ["B", "L", 9], "features -10 to 4"),
        ([(-3, 0, -1)], ["B", "L", 9], "features -3 to 0"),
        ([(0, 4, -1)], ["B", "L", "D"], "known number of features, not D"),
        ([(0, 4, -1)], ["D"], r"takes \[..., L, dim\]"),
    ],
)
def test_what_cannot_be_shifted(pieces: list[tuple[int, int, int]], shape: list[int | str], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        ShiftOp.shapes({"pieces": pieces}, (parse_shape(shape),))


def test_a_causal_model_does_not_look_ahead() -> None:
    ahead, back = ShiftOp.spec(pieces=[(0, 4, 1)]), ShiftOp.spec(pieces=[(0, 4, -1)])
    with pytest.raises(vf.ConfigError, match="relative 1 reads later tokens, and the model is causal"):
        vf.build(ahead, causal=True)
    assert vf.build(back, causal=True).pieces == ((0, 4, -1),)
    assert not ShiftOp.abilities({"pieces": [(0, 4, 1)]}).causal
    assert not ShiftOp.abilities({"pieces": [(0, 4, 1)]}).decode
    assert ShiftOp.abilities({"pieces": [(0, 4, -1)]}).causal
    with pytest.raises(vf.ConfigError):
        vf.build(ShiftOp.spec(pieces=[]))
