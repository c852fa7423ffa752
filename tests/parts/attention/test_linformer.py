"""Linformer attention against its formula."""

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.parts.attention.linformer import LinformerAttention
from variform.parts.kinds import Sides
from variform.parts.mixer.multi_head import MultiHead

EXACT = {"rtol": 0, "atol": 1e-10}


def qkv(queries: int, keys: int, kv_heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    sizes = ((4, queries, 3), (kv_heads, keys, 3), (kv_heads, keys, 5))
    q, k, v = (torch.randn(2, *size, dtype=torch.float64) for size in sizes)
    return q, k, v


def formula(part: LinformerAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rest = part.max_seq_len - k.shape[2]
    k, v = (torch.nn.functional.pad(t.repeat_interleave(4 // t.shape[1], 1), (0, 0, 0, rest)) for t in (k, v))
    keys, values = torch.einsum("nl,bhld->bhnd", part.E.weight, k), torch.einsum("nl,bhld->bhnd", part.F.weight, v)
    return (q @ keys.transpose(-1, -2) / 3**0.5).softmax(-1) @ values


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("queries", "keys"), [(12, 12), (7, 7), (5, 9)])
def test_it_is_its_formula(queries: int, keys: int, kv_heads: int) -> None:
    part = vf.build(LinformerAttention.spec(max_seq_len=12, projected=5)).double()
    q, k, v = qkv(queries, keys, kv_heads)
    torch.testing.assert_close(part(q, k, v, Sides()), formula(part, q, k, v), **EXACT)


def test_padding_takes_no_column_of_the_maps() -> None:
    part = vf.build(LinformerAttention.spec(max_seq_len=12)).double()
    q, k, v = qkv(3, 9)
    valid = torch.zeros(2, 9, dtype=torch.bool)
    valid[0, 2:7] = valid[1, ::2] = True
    out = part(q, k.masked_fill(~valid[:, None, :, None], torch.nan), v, Sides(k_valid=valid))
    for row in range(2):
        short = [t[row : row + 1][:, :, valid[row]] for t in (k, v)]
        torch.testing.assert_close(out[row : row + 1], formula(part, q[row : row + 1], *short), **EXACT)


def test_sizes() -> None:
    assert vf.build(LinformerAttention.spec(max_seq_len=18)).E.weight.shape == (4, 18)
    assert vf.build(LinformerAttention.spec(max_seq_len=3)).F.weight.shape == (1, 3)
    with pytest.raises(vf.ConfigError, match="cannot be more than max_seq_len = 12"):
        vf.build(LinformerAttention.spec(max_seq_len=12, projected=13))
    part = vf.build(LinformerAttention.spec(max_seq_len=6))
    with pytest.raises(vf.ShapeError, match="maps for 6 positions, and there are 7 keys"):
        part(*(t.float() for t in qkv(7, 7)), Sides())


def test_dropout_is_applied_once_to_the_weights() -> None:
    part = vf.build(LinformerAttention.spec(max_seq_len=8, projected=1, dropout=0.5)).double().train()
    q, k, v = qkv(400, 8)
    out, kept = part(q, k, v, Sides()), part.eval()(q, k, v, Sides())
    factor = (out / kept).mean(-1)  # with one weight, which is kept and doubled, or dropped
    assert bool((((factor - 2).abs() < 1e-9) | (factor == 0)).all())
    assert 0.45 < float((factor == 0).double().mean()) < 0.55


def test_there_is_no_causal_form() -> None:
    with pytest.raises(vf.ConfigError, match=r"no causal form.*\n?.*causal: .*nystrom"):
        vf.build(MultiHead.spec(attention=LinformerAttention.spec(max_seq_len=8)), dim=8, heads=2, causal=True)
