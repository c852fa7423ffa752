"""`Attention` by itself: what it refuses, and what copies of it are."""

import copy
import pickle
from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import Attention
from variform.dialects.x_transformers.errors import InputError, KeywordError


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"qk_nrom": True}, "did you mean 'qk_norm'"),
        ({"rotate_num_heads": 2}, "a stack of attentions has it"),
        ({"kv_heads": 3}, "must divide heads"),
        ({"project_out": False}, "without an output map"),
    ],
)
def test_bad_keywords(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        Attention(16, heads=4, dim_head=5, **keywords)


def test_what_stacks_have_is_refused() -> None:
    attention, x = Attention(16, heads=4, dim_head=4, causal=True), torch.randn(1, 5, 16)
    with pytest.raises(KeywordError, match="mem"):
        attention(x, mem=x)
    with pytest.raises(KeywordError, match="no argument 'maks'"):
        attention(x, maks=None)
    with pytest.raises(KeywordError, match="settled when it is built"):
        attention(x, causal=False)
    with pytest.raises(InputError, match="exclude one another"):
        attention(x, rel_pos=lambda i, j: torch.zeros(4, i, j), attn_bias=torch.zeros(5, 5))
    with pytest.raises(InputError, match="its own sequence alone"):
        Attention(16, heads=4, orthog_projected_values=True)(x, context=x)
    with pytest.raises(InputError, match="pass context"):
        Attention(16, heads=4, dim_context=8)(x)


def test_copies_read_contexts_through_their_own_maps() -> None:
    attention, x, context = Attention(16, heads=4, dim_head=4), torch.randn(1, 5, 16), torch.randn(1, 3, 16)
    before = attention(x, context)
    for other in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):  # what was just made
        torch.testing.assert_close(other(x, context), before)
        with torch.no_grad():
            other.native.query.out.weight.zero_()
        assert not torch.allclose(other(x, context), before)
    torch.testing.assert_close(attention(x, context), before)
    assert len(list(attention.parameters())) == 4
