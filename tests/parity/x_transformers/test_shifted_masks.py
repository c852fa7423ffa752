"""Shifted tokens with masks of pairs and of keys, against the installed x-transformers."""

import pytest
import torch

from tests.parity.x_transformers.harness import agree, pair
from tests.parity.x_transformers.test_layers import tokens, wrapped


@pytest.mark.parametrize("stack", ["Encoder", "Decoder"])
def test_masks_hide_keys_and_no_neighbours(stack: str) -> None:
    draw = torch.Generator().manual_seed(1)
    pairs = (torch.rand(7, 7, generator=draw) < 0.6) | torch.eye(7, dtype=torch.bool)
    keys = torch.rand(2, 7, generator=draw) < 0.7
    keys[:, 0] = True
    theirs, mine = pair(wrapped(stack, {"shift_tokens": 1}))
    agree(theirs, mine, lambda model: model(tokens(length=7), attn_mask=pairs))
    theirs, mine = pair(wrapped(stack, {"shift_tokens": 1}))
    agree(theirs, mine, lambda model: model(tokens(length=7), self_attn_kv_mask=keys))
