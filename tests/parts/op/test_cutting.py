import pytest
import torch

import variform as vf
from tests.parts.op.agree import built, same
from variform.core.dims import parse_shape
from variform.errors import ShapeError
from variform.parts.op.cutting import CatOp, CutOp, solve_sizes

X = ("B", "L", 8)


@pytest.mark.parametrize(
    ("start", "stop", "axis", "shape", "rows"),
    [
        (0, 3, 1, X, (0, 3)),
        (2, 5, 1, X, (2, 5)),
        (-3, None, 1, X, (4, 7)),
        (1, -1, 1, X, (1, 6)),
        (0, "L", 1, X, (0, 7)),
        (1, "L - 2", 1, X, (1, 5)),
        ("L - 3", "L", -2, X, (4, 7)),
        ("L//2", None, 1, X, (3, 7)),
        (0, "L", 1, ("B", "2*L + 1", 8), (0, 7)),
        ("B", 7, 1, X, (2, 7)),
        (2, 6, -1, X, (2, 6)),
        (2, 6, 2, X, (2, 6)),
        (1, 2, 0, X, (1, 2)),
        (0, "L", 2, ("B", 3, "L + 4", 5), (0, 7)),
        (1, 3, -3, ("B", 3, "L", 5), (1, 3)),
        (2, 4, 0, (5,), (2, 4)),
        (1, "L", 1, ("B", "L"), (1, 7)),
    ],
)
def test_slices(start: int | str, stop: int | str | None, axis: int, shape: tuple, rows: tuple[int, int]) -> None:
    _, (x,), (y,) = built(CutOp.spec(start=start, stop=stop, axis=axis), shape, B=2, L=7)
    same(y, x.index_select(axis, torch.arange(*rows)), x)


def test_another_tensor_tells_a_size() -> None:
    spec = CutOp.spec(start=0, stop="L", axis=2)
    _, (offset, _), (y,) = built(spec, (1, 3, 9, 9), ("B", "L"), B=2, L=5)
    assert torch.equal(y, offset[:, :, :5])


@pytest.mark.parametrize(
    ("start", "stop", "axis", "shape", "words"),
    [
        (0, 9, -1, X, r"the dimension 2 has 8 indices, and is to be cut at 9"),
        (-9, None, -1, X, "has 8 indices, and is to be cut at -1"),
        (3, 3, -1, X, "nothing lies between 3 and 3"),
        (5, 2, 1, X, "nothing lies between 5 and 2"),
        (0, "L + 1", 1, X, r"has L indices, and is to be cut at L \+ 1"),
        ("L", "L", 1, X, "nothing lies between L and L"),
        (0, "K", 1, X, "nothing that is read tells the size 'K'"),
        (0, "L", 1, ("B", "L//2", 8), "nothing that is read tells the size 'L'"),
        (0, 1, 3, X, "no dimension 3"),
        (0, 1, -4, X, "no dimension -4"),
    ],
)
def test_what_cannot_be_cut(start: int | str, stop: int | str | None, axis: int, shape: tuple, words: str) -> None:
    args = {"start": start, "stop": stop, "axis": axis, "read_sizes": None}
    with pytest.raises(ShapeError, match=words):
        CutOp.shapes(args, (parse_shape(shape),))


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (8, None), (-9, None), (0, -7)])
def test_lengths_that_only_a_call_knows(start: int, stop: int | None) -> None:
    with pytest.raises(ShapeError, match=r"are wanted, and the tensor is \[2, 7, 8\]"):
        CutOp(start=start, stop=stop, axis=1, read_sizes=None)(torch.zeros(2, 7, 8))


def test_bounds_are_read_before_anything_is_built() -> None:
    for field in ("start", "stop"):
        with pytest.raises(vf.ConfigError, match=f"{field}: this is not a size"):
            vf.build(CutOp.spec(**{field: "L +"}))
    args = {"start": 0, "stop": 1, "axis": 1, "read_sizes": (("B", "K"),)}
    with pytest.raises(ShapeError, match="read_sizes are those of another place"):
        CutOp.shapes(args, (parse_shape(["B", "L"]),))


def test_names_are_solved_where_they_can_be() -> None:
    shapes = [parse_shape(["B", "2*L + 1", 4]), parse_shape(["K//2", "B*M"])]
    assert solve_sizes(shapes, [(3, 11, 4), (2, 12)]) == {"B": 3, "L": 5}


@pytest.mark.parametrize(
    ("axis", "shapes"),
    [
        (-1, [X, ("B", "L", 3)]),
        (2, [X, X, ("B", "L", "D")]),
        (1, [X, ("B", 2, 8), ("B", "L + 1", 8)]),
        (0, [X, (1, "L", 8)]),
        (-2, [("B", 3, "L", 4), ("B", 3, 1, 4)]),
        (0, [("L",), (2,)]),
    ],
)
def test_joined(axis: int, shapes: list[tuple]) -> None:
    _, inputs, (y,) = built(CatOp.spec(axis=axis), *shapes, B=2, L=7, D=3)
    whole = y.new_zeros(y.shape)
    at = 0
    for x in inputs:
        whole.index_copy_(axis % x.dim(), torch.arange(at, at + x.shape[axis]), x.detach())
        at += x.shape[axis]
    assert torch.equal(y, whole)


@pytest.mark.parametrize(
    ("axis", "shapes", "words"),
    [
        (-1, [X], "at least two"),
        (-1, [X, ("B", 8)], "equal ranks"),
        (-1, [X, ("B", "K", 8)], "K is not L"),
        (1, [X, ("B", "L", 7)], "7 is not 8"),
        (3, [X, X], "no dimension 3"),
    ],
)
def test_what_cannot_be_joined(axis: int, shapes: list[tuple], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        CatOp.shapes({"axis": axis}, tuple(map(parse_shape, shapes)))


@pytest.mark.parametrize(
    ("spec", "shapes", "refused"),
    [
        (CutOp.spec(start=1), [X], True),
        (CutOp.spec(start=0, stop=3), [X], False),
        (CutOp.spec(start=1, axis=2), [X], False),
        (CutOp.spec(start=1, axis=2), [("B", 2, "L", 8)], True),
        (CatOp.spec(axis=1), [X, X], True),
        (CatOp.spec(axis=-1), [X, X], False),
    ],
)
def test_a_causal_model_keeps_tokens_in_their_places(spec: vf.Spec, shapes: list[tuple], refused: bool) -> None:
    facts = {**spec.leaves(), "causal": True, "read_shapes": tuple(map(parse_shape, shapes))}
    assert bool(spec.part.check(facts)) is refused


def test_low_precision_stays() -> None:
    x = torch.randn(1, 4, 6).bfloat16()
    assert CatOp()(x, x).dtype == CutOp(stop=2, read_sizes=None)(x).dtype == torch.bfloat16
