"""Lambda layers against loops over their formula."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.ops.content_lambda import content_lambda
from variform.parts.attention.lambda_layer import LambdaAttention
from variform.parts.kinds import Sides

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-10}


def qkv(length: int, kv_heads: int = 2) -> list[Tensor]:
    sizes = ((4, length, 3), (kv_heads, length, 3), (kv_heads, length, 5))
    return [torch.randn(2, *size, dtype=torch.float64).requires_grad_() for size in sizes]


def part(**fields: Any) -> LambdaAttention:
    return vf.build(LambdaAttention.spec(max_seq_len=40, dim_head=3, **fields)).double().eval()


def loops(attention: LambdaAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A lambda for each query."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    rows = []
    for n in range(q.shape[2]):
        end = n + 1 if attention.causal else q.shape[2]
        content = torch.einsum("bhmk,bhmv->bhkv", k[:, :, :end].softmax(2), v[:, :, :end])
        distances = torch.stack([attention.rel_pos_emb[m - n + attention.max_seq_len - 1] for m in range(end)])
        position = torch.einsum("mk,bhmv->bhkv", distances, v[:, :, :end])
        rows.append(torch.einsum("bhkv,bhk->bhv", content + position, q[:, :, n]))
    return torch.stack(rows, 2)


@pytest.mark.parametrize("length", [1, 7, 16, 37, 40])
@pytest.mark.parametrize("causal", [True, False])
def test_it_is_its_formula(causal: bool, length: int) -> None:
    given, attention = qkv(length), part(causal=causal)
    got, wanted = attention(*given, Sides()), loops(attention, *given)
    torch.testing.assert_close(got, wanted, **EXACT)
    weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
    leaves = [*given, attention.rel_pos_emb]
    found, right = (torch.autograd.grad((out * weights).sum(), leaves) for out in (got, wanted))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("causal", [True, False])
def test_distances_count_real_tokens(causal: bool) -> None:
    q, k, v = qkv(9)
    valid = torch.tensor([[False, True, True, False, True, True, True, False, True], [True] * 9])
    attention = part(causal=causal)
    out = attention(q, k.masked_fill(~valid[:, None, :, None], torch.nan), v, Sides(q_valid=valid, k_valid=valid))
    short = attention(*(t[:1, :, valid[0]] for t in (q, k, v)), Sides())
    torch.testing.assert_close(out[:1, :, valid[0]], short, **EXACT)


def test_large_keys_stay_finite() -> None:
    q, k, v = (t.detach() for t in qkv(33, kv_heads=4))
    k = k.requires_grad_()
    out = content_lambda(q, k * 300, v, None, causal=True)
    (gradient,) = torch.autograd.grad(out.sum(), k)
    assert bool(out.isfinite().all())
    assert bool(gradient.isfinite().all())
    for n in (0, 15, 16, 32):
        lambdas = (k * 300)[:, :, : n + 1].softmax(2).transpose(-1, -2) @ v[:, :, : n + 1]
        torch.testing.assert_close(out[:, :, n], (q[:, :, n : n + 1] @ lambdas)[:, :, 0], **EXACT)


def test_dropout_and_lengths() -> None:
    given, attention = qkv(20), part(dropout=0.5)
    out, kept = attention.train()(*given, Sides()), attention.eval()(*given, Sides())
    assert 0.3 < float((out == 0).double().mean()) < 0.7
    torch.testing.assert_close(out[out != 0], 2 * kept[out != 0], **EXACT)
    with pytest.raises(vf.ShapeError, match="at most 40: there are 41 queries"):
        attention(*qkv(41), Sides())
    with pytest.raises(vf.ShapeError, match="4 queries and 5 keys"):
        attention(qkv(4)[0], *qkv(5)[1:], Sides())
