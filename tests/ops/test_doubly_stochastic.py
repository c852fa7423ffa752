import torch

from variform.ops.doubly_stochastic import doubly_stochastic


def test_rows_and_columns_sum_to_one() -> None:
    scores = torch.randn(3, 4, 4, dtype=torch.float64)
    matrix = doubly_stochastic(scores, 30)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(3, 4, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(-2), torch.ones(3, 4, dtype=torch.float64))
    assert (matrix > 0).all()
    assert (matrix - 0.25).abs().max() > 0.1


def test_columns_sum_to_one_whatever_the_rounds() -> None:
    for rounds in (0, 1, 5):
        matrix = doubly_stochastic(3 * torch.randn(5, 5), rounds)
        torch.testing.assert_close(matrix.sum(-2), torch.ones(5))


def test_factors_of_rows_and_columns_change_nothing() -> None:
    scores = torch.randn(3, 3, dtype=torch.float64)
    moved = scores + torch.randn(3, 1, dtype=torch.float64) + torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(doubly_stochastic(moved, 200), doubly_stochastic(scores, 200))


def test_half_precision_is_summed_in_float32() -> None:
    assert doubly_stochastic(torch.randn(2, 2, dtype=torch.bfloat16), 3).dtype is torch.float32
