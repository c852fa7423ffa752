import pytest
import torch

from tests.parts.op.agree import built, same
from variform.core.dims import parse_shape
from variform.errors import ShapeError
from variform.parts.op.packing import BatchToFeatures, PackBatch, UnpackBatch, UnpackFeatures


@pytest.mark.parametrize("shape", [("B", 15, 4), ("B", "5*L", 4), (2, "L", 4)])
def test_groups_become_rows(shape: tuple[int | str, ...]) -> None:
    _, (x,), (y,) = built(PackBatch.spec(group=5), shape, B=3, L=15)
    same(y, torch.cat([group for row in x for group in row.split(5)]).view_as(y), x)


def test_the_default_group_is_ten() -> None:
    assert PackBatch().group == 10


@pytest.mark.parametrize(("groups", "batch"), [(None, 1), (3, 2), (6, 1), (1, 6)])
def test_rows_become_tokens_or_features(groups: int | None, batch: int) -> None:
    spec = UnpackBatch.spec(groups=groups)
    shape = ("B", "L", 4) if groups is None else (f"{groups}*B", "L", 4)
    sizes = {"B": 6 if groups is None else batch, "L": 5}
    _, (x,), (y,) = built(spec, shape, **sizes)
    rows = x.split(6 // batch)
    same(y, torch.stack([torch.cat(list(row)) for row in rows]), x)
    _, (x,), (y,) = built(BatchToFeatures.spec(groups=groups), shape, **sizes)
    same(y, torch.stack([torch.cat(list(row), -1) for row in x.split(6 // batch)]), x)


def test_features_become_tokens() -> None:
    _, (x,), (y,) = built(UnpackFeatures.spec(out=3), ("B", "L", 12), B=2, L=5)
    same(y, torch.cat(x.split(3, -1), 1), x)
    assert UnpackFeatures().out == 64
    _, _, (y,) = built(UnpackFeatures.spec(out=3), ("B", "L", "6*D"), B=2, L=5, D=2)
    assert y.shape == (2, 20, 3)


def test_packing_is_undone() -> None:
    x = torch.randn(2, 12, 4)
    packed = PackBatch(group=3)(x)
    assert torch.equal(UnpackBatch(groups=4)(packed), x)
    assert torch.equal(UnpackFeatures(out=4)(BatchToFeatures(groups=4)(packed)), x)


@pytest.mark.parametrize(
    ("op", "args", "shape", "words"),
    [
        (PackBatch, {"group": 4}, ["B", 15, 4], "groups of 4 tokens do not fill 15"),
        (PackBatch, {"group": 4}, ["B", 15], r"\[B, L, dim\]"),
        (UnpackBatch, {"groups": 4}, ["B", 15, 4], "B rows are not a multiple of 4"),
        (UnpackBatch, {"groups": 4}, [6, 15, 4], "6 rows are not a multiple of 4"),
        (BatchToFeatures, {"groups": 4}, ["2*B", 15, 4], r"2\*B rows"),
        (UnpackFeatures, {"out": 5}, ["B", "L", 12], "12 features are not a multiple of 5"),
        (UnpackFeatures, {"out": 5}, ["B", "L", "D"], "D features"),
    ],
)
def test_what_does_not_fit(op: type, args: dict[str, int], shape: list[int | str], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        op.shapes(args, (parse_shape(shape),))  # type: ignore[attr-defined]


def test_a_length_that_is_no_multiple_is_refused_when_it_comes() -> None:
    with pytest.raises(ShapeError, match="do not fill 7 tokens: pad"):
        PackBatch(group=3)(torch.zeros(1, 7, 2))
