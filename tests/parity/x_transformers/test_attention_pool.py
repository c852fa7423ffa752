"""`AttentionPool` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.parity.x_transformers.harness import agree, pair
from variform.dialects.x_transformers import AttentionPool
from variform.dialects.x_transformers.errors import InputError, KeywordError


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_pooled_tokens": 3, "dim_context": 24, "add_residual": True},
        {"squeeze_output": True, "attn_kwargs": {"qk_norm": True}},
        {"num_pooled_tokens": 2, "depth": 2, "dim_context": 24},
        {"use_transformer_blocks": True},
        {"num_pooled_tokens": 0},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_pools(options: dict[str, Any]) -> None:
    def build(package: Any) -> nn.Module:
        pool: nn.Module = package.AttentionPool(dim=16, heads=2, dim_head=8, **options)
        return pool

    theirs, mine = pair(build)
    context = torch.randn(2, 7, options.get("dim_context", 16), dtype=torch.float64)
    given = {"queries": torch.randn(2, 3, 16, dtype=torch.float64)} if options.get("num_pooled_tokens") == 0 else {}
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    agree(theirs, mine, lambda pool: pool(context, mask=mask, **given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pooled_token": 2}, "did you mean 'num_pooled_tokens'"),
        ({"num_pooled_tokens": 2, "squeeze_output": True}, "several queries"),
        ({"depth": 2, "use_transformer_blocks": False}, "use_transformer_blocks=True"),
        ({"depth": 2, "add_residual": True}, "add their queries already"),
        ({"attn_kwargs": {"qk_nrom": True}}, "qk_nrom"),
        ({"heads": 0}, "at least 1"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        AttentionPool(**{"dim": 16, "heads": 2, "dim_head": 8, **options})


def test_queries_are_needed_where_none_are_learned() -> None:
    with pytest.raises(InputError, match="queries must be passed"):
        AttentionPool(dim=16, num_pooled_tokens=0)(torch.zeros(1, 3, 16))
