"""What old code does with every registered attention, whichever it is."""

from typing import Any

import pytest
import torch

from variform.dialects.xformers.building import known_keys
from variform.dialects.xformers.components import build_multi_head_attention
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY

SEQ, DIM, HEADS = 16, 16, 2
SUPERSET: dict[str, Any] = {
    "dropout": 0.0,
    "causal": False,
    "seq_len": SEQ,
    "dim_head": DIM / HEADS,
    "num_heads": HEADS,
    "window_size": SEQ // 8 + 1,
    "window": 3,
    "attention_query_mask": torch.eye(SEQ, dtype=torch.bool)[:, :1],
    "layout": torch.ones(1, 1, dtype=torch.long),
    "block_size": 16,
    "num_rules": 2,
    "r": 0.5,
}


def heads(name: str) -> Any:
    known = known_keys(ATTENTION_REGISTRY) | ATTENTION_REGISTRY.surroundings
    attention = {"name": name, **{key: value for key, value in SUPERSET.items() if key in known}}
    config = {"dim_model": DIM, "num_heads": HEADS, "residual_dropout": 0.0, "attention": attention}
    return build_multi_head_attention(config).eval()


@pytest.mark.parametrize("name", list(ATTENTION_REGISTRY))
def test_it_is_built_from_a_superset_and_called_either_way(name: str) -> None:
    module, x = heads(name), torch.randn(2, SEQ, DIM)
    y = module(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert torch.equal(y, module(x, x, x))
    assert torch.equal(y, module(query=x, key=x, value=x))


@pytest.mark.filterwarnings("ignore")  # of tracing: sizes become constants
@pytest.mark.parametrize("name", list(ATTENTION_REGISTRY))
def test_it_is_traced(name: str) -> None:
    module = heads(name)
    traced = torch.jit.trace(module, (torch.randn(2, SEQ, DIM),))
    x = torch.randn(2, SEQ, DIM)
    torch.testing.assert_close(traced(x), module(x))
