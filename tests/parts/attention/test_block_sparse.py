"""Attention between blocks of a layout against a plain softmax with the pairs written out, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import variform as vf
from variform.core.spec import Spec
from variform.errors import ConfigError, ShapeError
from variform.ops.attention import Call, candidates, metering
from variform.ops.attention.block_sparse import _tiling
from variform.ops.masks import Dense
from variform.parts.attention.block_sparse import BlockSparseAttention, layout_rows
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.kinds import Sides

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def plain(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    scores = torch.where(allowed, q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def qkv(length: int, heads: int = 2, dim: int = 4) -> list[Tensor]:
    return [torch.randn(2, heads, length, dim, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def pairs(layout: Tensor, block: int, length: int, causal: bool = False) -> Tensor:
    whole = layout.repeat_interleave(block, -1).repeat_interleave(block, -2).bool()[..., :length, :length]
    return whole.tril() if causal else whole


def built(layout: Tensor, **options: Any) -> Any:
    causal = options.pop("causal", False)
    return vf.build(BlockSparseAttention.spec(layout=layout_rows(layout), **options), causal=causal)


def same(part: Any, given: list[Tensor], sides: Sides, allowed: Tensor) -> None:
    out, wanted = part(*given, sides), plain(*given, allowed)
    torch.testing.assert_close(out, wanted, **EXACT)
    weights = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad((out * weights).sum(), given),
        torch.autograd.grad((wanted * weights).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize(
    ("block", "blocks", "length"), [(16, 5, 80), (16, 5, 77), (16, 5, 33), (24, 3, 50), (100, 2, 130)]
)
def test_values_and_gradients(block: int, blocks: int, length: int, by_head: bool, causal: bool) -> None:
    torch.manual_seed(length)
    layout = torch.rand(*((2,) if by_head else ()), blocks, blocks) < 0.5
    part = built(layout, block=block, causal=causal)
    same(part, qkv(length), Sides(), pairs(layout, block, length, causal))


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa", "block_sparse", "sparse"])
def test_finer_masks_padding_and_documents_on_top(backend: str) -> None:
    length, layout = 70, torch.rand(2, 5, 5) < 0.7
    part = built(layout, backend=backend, causal=True)
    fine, by_head = torch.rand(length, length) < 0.6, torch.rand(2, length, length) < 0.6
    valid = torch.rand(2, length) < 0.8
    segments = (torch.arange(length) // 30).expand(2, -1)
    base = (
        pairs(layout, 16, length, causal=True)
        & valid[:, None, None]
        & (segments[:, :, None] == segments[:, None])[:, None]
    )
    sides = {"k_valid": valid, "q_segments": segments, "k_segments": segments}
    same(part, qkv(length), Sides(mask=Dense(fine), **sides), base & fine)  # type: ignore[arg-type]
    same(part, qkv(length), Sides(mask=Dense(by_head, per="head"), **sides), base & by_head)  # type: ignore[arg-type]


def test_every_field_counts() -> None:
    given, layout = qkv(48), torch.eye(3)
    plain_out = built(layout)(*given, Sides())
    for options in ({"block": 24}, {"causal": True}, {"scale": 2.0}):
        assert not torch.allclose(built(layout, **options)(*given, Sides()), plain_out)
    assert not torch.allclose(built(torch.ones(3, 3))(*given, Sides()), plain_out)
    torch.testing.assert_close(built(layout, dropout=0.5).eval()(*given, Sides()), plain_out)
    assert not torch.allclose(built(layout, dropout=0.5).train()(*given, Sides()), plain_out)
    with pytest.raises(ConfigError, match="there is no such attention backend"):
        built(layout, backend="none")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("training", [False, True])
def test_half_precision(dtype: torch.dtype, training: bool) -> None:
    layout = torch.rand(10, 10) < 0.2
    part = built(layout, block=64, causal=True).train(training)
    given = [t.detach() for t in qkv(600, dim=16)]
    out = part(*(t.to(dtype).requires_grad_(training) for t in given), Sides())
    wanted = plain(*(t.to(dtype).double() for t in given), pairs(layout, 64, 600, causal=True))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol={torch.float32: 1e-5}.get(dtype, 2e-2))
    if training:
        out.float().square().mean().backward()


def calls_of(part: Any, given: list[Tensor]) -> Call:
    found: list[Call] = []
    with metering(lambda call, backend: found.append(call)):
        part(*given, Sides())
    return found[0]


SOFTMAX, LOCAL = SoftmaxAttention.spec(), LocalAttention.spec(window=200)
BLOCKS = BlockSparseAttention.spec(layout=("1" * 16,) * 16, block=64)


@pytest.mark.parametrize(("attention", "wanted"), [(SOFTMAX, 36), (LOCAL, 21), (BLOCKS, 36)])
def test_causal_alone_visits_tiles_on_or_below_the_diagonal(attention: Spec, wanted: int) -> None:
    """Eight tiles of 128 a side: 36 are on or below the diagonal, 8 + 7 + 6 of them within a window of 200."""
    part = vf.build(attention, causal=True)
    call = calls_of(part, [t.detach().float().requires_grad_() for t in qkv(1024, dim=16)])
    assert call.visited_tiles() == (wanted, 64)
    pairs = 1024 * 1025 // 2 if wanted == 36 else 1024 * 1025 // 2 - 824 * 825 // 2
    assert call.visited_pairs() == pairs
    assert call.flops()[0] == 2 * 2 * 2 * pairs * 32
    tiling = _tiling(call)
    assert sum(len(group.tiles) for group in tiling.plan.groups) * (tiling.plan.block / 128) ** 2 <= wanted


def test_causal_alone_is_never_a_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    kernel = functional.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        seen.append((kwargs["attn_mask"] is not None, kwargs["is_causal"]))
        return kernel(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    given = [t.detach().float() for t in qkv(1024, dim=16)]
    full = layout_rows(torch.ones(16, 16))
    lower = layout_rows(torch.ones(16, 16).tril())
    outs = [
        vf.build(SoftmaxAttention.spec(), causal=True)(*given, Sides()),
        vf.build(BlockSparseAttention.spec(layout=full, block=64), causal=True)(*given, Sides()),
        vf.build(BlockSparseAttention.spec(layout=lower, block=64), causal=True)(*given, Sides()),
        vf.build(BlockSparseAttention.spec(layout=lower, block=64), causal=False)(
            *given, Sides(mask=Dense(torch.ones(1024, 1024, dtype=torch.bool).tril()))
        ),
    ]
    assert seen == [(False, True)] * 4
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_dropout_leaves_causal_tiles_alone_to_compute() -> None:
    given = [t.detach().float().requires_grad_() for t in qkv(1024, dim=16)]
    part = vf.build(SoftmaxAttention.spec(), causal=True).train()
    part.dropout = 0.1
    assert candidates(calls_of(part, given))[0].name == "block_sparse"
    part.eval()
    assert candidates(calls_of(part, given))[0].name == "sdpa"


def test_layouts_that_are_none() -> None:
    for layout in (("10", "1"), ("10",), (), (("10", "01"), ("1",)), ("1a", "00")):
        with pytest.raises(ConfigError, match="layout"):
            vf.build(BlockSparseAttention.spec(layout=layout))
    with pytest.raises(ShapeError, match=r"a layout is \[n, n\] or \[H, n, n\]"):
        layout_rows(torch.ones(3))


def test_sequences_and_heads_beyond_the_layout() -> None:
    part = built(torch.ones(2, 2), block=16)
    with pytest.raises(ShapeError, match="covers 32 positions, the sequence has 33"):
        part(*qkv(33), Sides())
    with pytest.raises(ShapeError, match="covers 32 positions, decoding asks for 40"):
        part.init_state(1, 40, torch.zeros(1), 2, 4, 4)
    with pytest.raises(ShapeError, match="head size 3"):
        built(torch.ones(3, 2, 2))(*qkv(30), Sides())


def test_a_layout_is_plain_data() -> None:
    spec = BlockSparseAttention.spec(layout=layout_rows(torch.eye(2)), block=32)
    assert spec["layout"] == ("10", "01")
    assert vf.from_yaml(vf.to_yaml(spec)) == spec
