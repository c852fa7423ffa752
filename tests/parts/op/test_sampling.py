import pytest
import torch

from tests.parts.op.agree import built, same
from variform.core.dims import Dim, parse_shape
from variform.errors import ShapeError
from variform.parts.op.sampling import DownSample, UpSample


@pytest.mark.parametrize("shape", [("B", "L", 4), ("B", 3, "L", 4), ("B", 11, 4)])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 11])
@pytest.mark.parametrize(("stride", "start"), [(1, 0), (2, 0), (3, 0), (20, 0), (2, 1), (3, 5)])
def test_every_nth_token(shape: tuple[int | str, ...], length: int, stride: int, start: int) -> None:
    spec = DownSample.spec(stride=stride, start=start)
    if "L" in shape and start >= length:
        with pytest.raises(ShapeError, match=f"starts at token {start}, and there are {length}"):
            built(spec, shape, B=2, L=length)
        return
    _, (x,), (y,) = built(spec, shape, B=2, L=length)
    rows = range(start, x.shape[-2], stride)
    same(y, torch.stack([x[..., t, :] for t in rows], -2), x)


@pytest.mark.parametrize("shape", [("B", "L", 6), ("B", 2, "L", 6), ("B", "2*L + 1", 6)])
@pytest.mark.parametrize("chunks", [1, 2, 3, 6])
def test_a_token_becomes_several(shape: tuple[int | str, ...], chunks: int) -> None:
    _, (x,), (y,) = built(UpSample.spec(chunks=chunks), shape, B=2, L=5)
    wanted = [piece for t in range(x.shape[-2]) for piece in x[..., t, :].chunk(chunks, -1)]
    same(y, torch.stack(wanted, -2), x)


def test_lengths_are_expressions() -> None:
    def down(shape: list[int | str], stride: int) -> list[str]:
        return [str(size) for size in DownSample.shapes({"stride": stride, "start": 0}, (parse_shape(shape),))[0]]

    assert down(["B", "L", 4], 2) == ["B", "(L + 1)//2", "4"]
    assert down(["B", "2*L", 4], 2) == ["B", "L", "4"]
    assert down(["B", "(L + 1)//2", 4], 2)[1] != down(["B", "L", 4], 2)[1]
    up = UpSample.shapes({"chunks": 2}, (parse_shape(["B", "(L + 1)//2", 4]),))[0][1]
    assert up != Dim.symbol("L")
    assert up.value({"L": 7}) == 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("op", "args", "shape", "words"),
    [
        (DownSample, {"stride": 2, "start": 0}, ["B", 4], r"\[B, L, dim\]"),
        (DownSample, {"stride": 2, "start": 9}, ["B", 9, 4], "starts at token 9, and there are 9"),
        (UpSample, {"chunks": 4}, ["B", "L", 6], "4 chunks do not divide 6 features"),
        (UpSample, {"chunks": 4}, ["B", "L", "D"], "must be numbers"),
        (UpSample, {"chunks": 2}, ["B", 4], r"\[B, L, dim\]"),
    ],
)
def test_what_does_not_fit(op: type, args: dict[str, int], shape: list[int | str], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        op.shapes(args, (parse_shape(shape),))  # type: ignore[attr-defined]
