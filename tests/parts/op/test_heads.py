import pytest
import torch

from variform.core.dims import parse_shape
from variform.errors import ShapeError
from variform.parts.op.heads import MergeHeads, Offset, Scores, SplitHeads, WeightedSum

SCORES = ["B", 2, "L", "L"]


def test_merging_undoes_splitting() -> None:
    x = torch.randn(2, 5, 12)
    assert torch.equal(MergeHeads()(SplitHeads(heads=3)(x)), x)
    assert SplitHeads(heads=3)(x).shape == (2, 3, 5, 4)


@pytest.mark.parametrize("function", ["softmax", "relu", "tanh"])
def test_causal_hides_later_keys(function: str) -> None:
    op = WeightedSum(function=function, norm=None, weights=True, causal=True)  # type: ignore[arg-type]
    _, weights = op(torch.randn(2, 5, 12), torch.randn(2, 3, 5, 5))
    assert torch.equal(weights.triu(1), torch.zeros_like(weights))
    assert (weights.tril() != 0).any()


def test_a_scaled_offset_scales_the_scores_alone() -> None:
    op = Offset(scaled=True)
    torch.nn.init.constant_(op.scale, 3.0)  # type: ignore[arg-type]
    scores, offset = torch.randn(2, 3, 4, 4), torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(op(scores, offset), 3 * scores + offset[:, :, :4, :4])


@pytest.mark.parametrize("shape", [(1, 3, 3, 6), (1, 3, 6, 3), (5, 3, 4, 4)])
def test_an_offset_that_does_not_cover_the_scores_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="offset"):
        Offset()(torch.zeros(2, 3, 4, 4), torch.zeros(shape))


@pytest.mark.parametrize(
    ("op", "args", "shapes", "words"),
    [
        (
            SplitHeads,
            {"heads": 5},
            [["B", "L", 12]],
            "5 heads do not divide 12 features; nearest that divide it: 4 or 6",
        ),
        (SplitHeads, {"heads": 2}, [["B", "L", "D"]], "must be numbers"),
        (SplitHeads, {"heads": 2}, [["B", 12]], r"\[B, L, dim\]"),
        (MergeHeads, {}, [["B", "L", 12]], r"\[B, H, L, D\]"),
        (Scores, {}, [["B", 2, "L", 8], ["B", 2, "C", 4]], "equal features of a head, and 8 is not 4"),
        (Scores, {}, [["B", 2, "L", 8], ["B", 3, "C", 8]], "equal number of heads, and 2 is not 3"),
        (Scores, {}, [["B", 2, "L", 8], ["A", 2, "C", 8]], "equal batch sizes"),
        (Offset, {}, [SCORES, ["B", 3, "L", "L"]], "for 3 heads, the scores have 2"),
        (Offset, {}, [SCORES, ["C", 2, "L", "L"]], "batch size must be 1"),
        (Offset, {}, [["B", 2, 9, 9], ["B", 2, 8, 9]], "covers 8 positions, and 9 are needed"),
        (WeightedSum, {"weights": False, "causal": False}, [["B", "L", 7], SCORES], "2 heads do not divide 7"),
        (WeightedSum, {"weights": False, "causal": False}, [["B", 3, "L", 7], SCORES], "values have 3 heads"),
        (WeightedSum, {"weights": False, "causal": False}, [["B", "C", 8], SCORES], "C values, and scores for L keys"),
        (WeightedSum, {"weights": False, "causal": False}, [["A", "L", 8], SCORES], "equal batch sizes"),
        (WeightedSum, {"weights": False, "causal": True}, [["B", "C", 8], ["B", 2, "L", "C"]], "causal needs"),
    ],
)
def test_what_does_not_fit_is_found_from_the_shapes(op: type, args: dict, shapes: list, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        op.shapes(args, tuple(parse_shape(shape) for shape in shapes))  # type: ignore[attr-defined]
