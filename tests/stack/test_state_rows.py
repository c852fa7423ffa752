"""Rows of a decode state: each goes on as its own, whatever the order, and the original stays usable."""

import pytest
import torch

import variform as vf
from variform.errors import ShapeError
from variform.stack.state_rows import select_rows


@torch.no_grad()
def test_rows_go_on_in_another_order_and_twice() -> None:
    spec = vf.models.gpt(vocab_size=17, dim=12, depth=2, heads=2, max_seq_len=16, init_std=0.5)
    model = vf.build(spec).double()
    ids = torch.randint(0, 17, (3, 9))
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[1, 2:] = False
    _, state = model(ids[:, :5], valid=valid, state=model.init_state(3, 16))
    rows = torch.tensor([1, 2, 1, 0])
    selected = select_rows(state, rows, 3)
    expected, _ = model(ids[:, 5:], state=state)
    found, _ = model(ids[rows, 5:], state=selected)
    torch.testing.assert_close(found, expected[rows], rtol=0, atol=1e-12)


def test_a_tensor_of_another_number_of_rows_is_refused() -> None:
    with pytest.raises(ShapeError, match="rows come first"):
        select_rows({"parts": {"k": torch.zeros(4, 3)}}, torch.tensor([0]), 3)
