import pytest
import torch

import variform as vf
from tests.parts.op.agree import built, same
from variform.core.dims import parse_shape
from variform.errors import ShapeError
from variform.parts.op.scale import DropoutOp, ScaleOp


@pytest.mark.parametrize(
    ("axis", "shape", "view"),
    [
        (-1, ("B", "L", 6), (6,)),
        (2, ("B", "L", 6), (6,)),
        (1, ("B", 3, "L", 5), (3, 1, 1)),
        (-3, ("B", 3, "L", 5), (3, 1, 1)),
        (0, (4, 7), (4, 1)),
        (0, (5,), (5,)),
    ],
)
def test_each_index_has_a_factor(axis: int, shape: tuple[int | str, ...], view: tuple[int, ...]) -> None:
    op, (x,), (y,) = built(ScaleOp.spec(axis=axis), shape, B=2, L=7)
    assert torch.equal(y, x)
    torch.nn.init.normal_(op.gain)
    same(op(x), x * op.gain.view(view), x, op.gain)
    assert op.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("axis", "shape", "words"),
    [
        (1, ("B", "L", 6), "no known size .* this is L"),
        (0, ("B", "L", 6), "this is B"),
        (3, ("B", "L", 6), r"no dimension 3: its dimensions are -3 to 2"),
        (-4, ("B", "L", 6), "no dimension -4"),
    ],
)
def test_what_cannot_be_scaled(axis: int, shape: tuple[int | str, ...], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        built(ScaleOp.spec(axis=axis), shape, B=2, L=7)


def test_a_size_given_must_be_that_of_the_dimension() -> None:
    with pytest.raises(ShapeError, match="5 factors for 6 indices"):
        ScaleOp.shapes({"axis": -1, "size": 5}, (parse_shape(["B", 6]),))


def test_dropout_by_mean_and_variance() -> None:
    op, (x,), _ = built(DropoutOp.spec(p=0.25), ("B", "L", 8), B=3, L=5)
    torch.manual_seed(0)
    draws = torch.stack([op.train()(x.detach()) for _ in range(4000)])
    kept = (draws != 0).double().mean()
    assert kept.item() == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(draws[draws != 0], (x.detach() / 0.75).expand_as(draws)[draws != 0])
    assert torch.equal(op.eval()(x), x)
    assert torch.equal(DropoutOp(p=0.0).train()(x), x)
    assert DropoutOp(p=0.5)(x.bfloat16()).dtype == torch.bfloat16
    for p in (1.0, -0.1):
        with pytest.raises(vf.ConfigError):
            vf.build(DropoutOp.spec(p=p))
