from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.xformers.components import MultiHeadDispatch, build_attention
from variform.dialects.xformers.components.attention import BlockSparseAttention
from variform.dialects.xformers.errors import CallError
from variform.errors import ConfigError
from variform.ops.attention import Call, candidates, metering
from variform.ops.attention.reference import reference
from variform.ops.masks import Dense


def heads(length: int, count: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(length)
    return [torch.randn(2, count, length, 8, dtype=dtype) for _ in range(3)]


def wanted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    mask = mask.bool()
    return reference(Call(q.double(), k.double(), v.double(), mask=Dense(mask if mask.dim() == 2 else mask[None])))


def expanded(layout: Tensor, block: int, length: int) -> Tensor:
    return layout.repeat_interleave(block, -1).repeat_interleave(block, -2)[..., :length, :length] != 0


@pytest.mark.parametrize("length", [64, 50, 17])
@pytest.mark.parametrize("block", [16, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.long])
@pytest.mark.parametrize("count", [None, 1, 2])
def test_layouts_of_any_kind_and_lengths_of_any_size(
    count: int | None, dtype: torch.dtype, block: int, length: int
) -> None:
    layout = (torch.rand(*(() if count is None else (count,)), 4, 4) < 0.5).to(dtype)
    attention = BlockSparseAttention(layout=layout, block_size=block, num_heads=2)
    q, k, v = heads(length)
    found = attention(q, k, v)
    torch.testing.assert_close(found.double(), wanted(q, k, v, expanded(layout, block, length)), rtol=0, atol=1e-5)


def test_the_published_causal_example_in_half_precision() -> None:
    """A layout by head, a fine 0/1 mask in half precision, through MultiHeadDispatch."""
    length, block, count, dim = 512, 32, 8, 64
    causal_mask = torch.tril(torch.ones((length, length), dtype=torch.float16))
    layout = torch.tril(torch.ones([count, length // block, length // block]))
    attention = BlockSparseAttention(layout=layout, block_size=block, dropout=0.1, num_heads=count)
    module = MultiHeadDispatch(dim_model=dim, num_heads=count, attention=attention, residual_dropout=0.1).half()
    query = torch.randn(2, length, dim, dtype=torch.float16, requires_grad=True)
    out = module(query=query, key=query, value=query, att_mask=causal_mask)
    out.float().square().mean().backward()
    assert out.dtype == torch.float16
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()
    module.eval()
    full = module.float()(query.float(), att_mask=causal_mask.bool())
    torch.testing.assert_close(module.half()(query, att_mask=causal_mask).float(), full, rtol=0, atol=5e-3)
    changed = query.detach().clone()
    changed[:, 300:] = 0
    assert torch.equal(module(changed, att_mask=causal_mask)[:, :300], module(query, att_mask=causal_mask)[:, :300])


def test_that_example_is_run_as_causal_attention() -> None:
    length = 512
    attention = BlockSparseAttention(layout=torch.tril(torch.ones(2, 16, 16)), block_size=32, num_heads=2)
    calls: list[Call] = []
    with metering(lambda call, backend: calls.append(call)):
        attention(*heads(length), att_mask=torch.ones(length, length).tril())
    assert candidates(calls[0])[0].why == "fused kernel"


def test_causal_by_flag() -> None:
    layout = torch.ones(4, 4)
    q, k, v = heads(60)
    found = BlockSparseAttention(layout=layout, causal=True)(q, k, v)
    lower = torch.ones(60, 60).tril()
    torch.testing.assert_close(found.double(), wanted(q, k, v, lower), rtol=0, atol=1e-5)


def test_masks_by_head_and_key_padding() -> None:
    layout = torch.rand(2, 4, 4) < 0.7
    attention = BlockSparseAttention(layout=layout, num_heads=2)
    assert attention.requires_head_dimension
    q, k, v = heads(60)
    fine, padding = torch.rand(2, 60, 60) < 0.6, torch.arange(60) < torch.tensor([[60], [40]])
    base = expanded(layout, 16, 60) & fine
    found = attention(q, k, v, att_mask=fine, key_padding_mask=padding)
    for row in range(2):
        one = wanted(q[row : row + 1], k[row : row + 1], v[row : row + 1], base & padding[row])
        torch.testing.assert_close(found[row : row + 1].double(), one, rtol=0, atol=1e-5)


def test_few_tiles_are_gathered() -> None:
    layout = torch.eye(32)
    attention = BlockSparseAttention(layout=layout, block_size=32, num_heads=2)
    names: list[str] = []
    with metering(lambda call, backend: names.append(candidates(call)[0].name)):
        attention(*heads(1000))
    assert names == ["block_sparse"]


def test_from_a_superset_of_keys() -> None:
    config: dict[str, Any] = {
        "name": "blocksparse",
        "dropout": 0.2,
        "layout": torch.ones(2, 2),
        "block_size": 32,
        "num_heads": 4,
        "causal": True,
        "window_size": 3,
        "dim_model": 16,
    }
    attention = build_attention(config)
    assert set(attention.dropped) == {"window_size", "dim_model"}
    assert attention.causal
    assert attention.attn_drop.p == 0.2
    assert attention.spec["block"] == 32


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"layout": torch.ones(2, 3)}, "layout"),
        ({"layout": "all"}, "layout"),
        ({"layout": torch.ones(0, 0)}, "layout"),
        ({"layout": torch.ones(3, 2, 2), "num_heads": 2}, "num_heads"),
        ({"block_size": 8}, "block_size"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        BlockSparseAttention(**{"layout": torch.ones(2, 2), **change})


def test_calls_that_do_not_fit() -> None:
    attention = BlockSparseAttention(layout=torch.ones(3, 2, 2), num_heads=3)
    with pytest.raises(CallError, match="covers 32 positions, the sequence has 33"):
        attention(*heads(33, count=3))
    with pytest.raises(CallError, match="layout has 3 heads, q has 2"):
        attention(*heads(32))


def test_folded_heads() -> None:
    layout = torch.rand(2, 4, 4) < 0.5
    attention = BlockSparseAttention(layout=layout, num_heads=2)
    q, k, v = heads(60)
    found = attention(*(t.flatten(0, 1) for t in (q, k, v)))
    assert torch.equal(found, attention(q, k, v).flatten(0, 1))
