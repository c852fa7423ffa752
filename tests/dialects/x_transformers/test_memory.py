"""Upstream's memories, as memories of the core."""

import pytest
import torch

from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.memory import memories_of

MEMS = [torch.randn(2, 3, 4), torch.randn(2, 3, 4)]
SOME, ALL = torch.tensor([[True, False, True]] * 2), torch.ones(2, 3, dtype=torch.bool)


def test_masks_go_with_their_memories() -> None:
    memories = memories_of(MEMS, [SOME, None], 5, 1)
    assert memories.recalled == (MEMS[1], MEMS[0])
    assert memories.recalled_valid == (None, SOME)


def test_equal_masks_are_one() -> None:
    assert memories_of(MEMS, [SOME, SOME.clone()], 5, 0).valid is SOME
    assert memories_of(MEMS, SOME, 5, 0).valid is SOME
    assert memories_of(MEMS, [None, None], 5, 0).valid is None
    assert memories_of(MEMS, [SOME, ALL], 5, 0).valid == (SOME, ALL)


def test_masks_that_are_not_of_the_memories() -> None:
    with pytest.raises(InputError, match="2 self-attentions, and 1 mem_masks"):
        memories_of(MEMS, [SOME], 5, 0)
    with pytest.raises(InputError, match="mem_masks are bool"):
        memories_of(MEMS, [SOME, SOME[:, :2]], 5, 0)
