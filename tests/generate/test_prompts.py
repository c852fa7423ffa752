"""Prompts in every form end as the same batch, or as a clear error."""

import pytest
import torch

from variform.errors import ShapeError
from variform.generate.prompts import batch_of

ROWS = [[3, 1, 2], [4], [5, 6]]
LEFT = [[3, 1, 2], [0, 0, 4], [0, 5, 6]]


@pytest.mark.parametrize("fill", [0, -100, 99])
def test_padding_may_stand_anywhere(fill: int) -> None:
    """Whatever the padding is filled with."""
    right = torch.tensor([[3, 1, 2, fill], [4, fill, fill, fill], [5, 6, fill, fill]])
    apart = torch.tensor([[fill, 3, 1, 2], [fill, 4, fill, fill], [5, fill, fill, 6]])
    for batch in (
        batch_of(ROWS, None, None, 10, "cpu"),
        batch_of([torch.tensor(row) for row in ROWS], None, None, 10, "cpu"),
        batch_of(right, torch.tensor([3, 1, 2]), None, 10, "cpu"),
        batch_of(right, [3, 1, 2], None, 10, "cpu"),
        batch_of(right, None, right != fill, 10, "cpu"),
        batch_of(apart, None, apart != fill, 10, "cpu"),
    ):
        assert batch.ids.tolist() == LEFT
        assert batch.ids.dtype == torch.long
        assert batch.valid is not None
        assert batch.valid.tolist() == [[True] * 3, [False, False, True], [False, True, True]]
        assert not batch.single


def test_rows_of_equal_length_have_no_mask() -> None:
    """So that they take the faster path."""
    for prompt in ([[1, 2], [3, 4]], torch.tensor([[1, 2], [3, 4]]), (torch.tensor([1, 2]), torch.tensor([3, 4]))):
        assert batch_of(prompt, None, None, 10, "cpu").valid is None
    padded = torch.tensor([[1, 2, 0], [3, 4, 0]])
    batch = batch_of(padded, [2, 2], None, 10, "cpu")
    assert batch.valid is None
    assert batch.ids.tolist() == [[1, 2], [3, 4]]


def test_one_prompt_without_a_batch_axis() -> None:
    for prompt in ([1, 2, 3], torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3], dtype=torch.uint8)):
        batch = batch_of(prompt, None, None, 10, "cpu")
        assert batch.single
        assert batch.ids.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("prompt", "lengths", "valid", "message"),
    [
        ([], None, None, "the prompt is empty"),
        (torch.zeros(2, 0, dtype=torch.long), None, None, "at least one token"),
        (torch.zeros(1, 2, 3, dtype=torch.long), None, None, r"\[L\] or \[B, L\]"),
        (torch.zeros(3), None, None, "integers, not torch.float32"),
        ([[1], []], None, None, "prompt 1 has shape"),
        ([[1], ["a"]], None, None, "prompt 1 is not a list of token ids"),
        ([[1], [0.5]], None, None, "integers, not torch.float32"),
        ("to be", None, None, "encode text first"),
        (7, None, None, "not int"),
        ([1, 10], None, None, r"\[0, 10\); the prompt's lie in \[1, 10\]"),
        ([1, -1], None, None, r"lie in \[-1, 1\]"),
        ([[1], [2]], [1, 1], None, "belong to a padded"),
        (torch.ones(2, 2, dtype=torch.long), [2, 0], None, r"prompts are empty: \[1\]"),
        (torch.ones(2, 2, dtype=torch.long), [2, 3], None, "at most 2"),
        (torch.ones(2, 2, dtype=torch.long), [2], None, r"\[2\] integers"),
        (torch.ones(2, 2, dtype=torch.long), [2.0, 1.0], None, "integers, not torch.float32"),
        (torch.ones(2, 2, dtype=torch.long), [2, 1], torch.ones(2, 2).bool(), "give one of them"),
        (torch.ones(2, 2, dtype=torch.long), None, torch.ones(2, 2), r"bool \[2, 2\] expected, got torch.float32"),
        (torch.ones(2, 2, dtype=torch.long), None, torch.ones(2, 3).bool(), "expected, got"),
    ],
)
def test_bad_prompts(prompt: object, lengths: object, valid: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        batch_of(prompt, lengths, valid, 10, "cpu")  # type: ignore[arg-type]
