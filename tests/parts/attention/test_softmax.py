"""Softmax, local and linear attention against loops over their formulas, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import BackendError
from variform.ops.masks import Dense
from variform.ops.scores import DenseBias
from variform.parts.attention.linear import LinearAttention
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.kinds import Sides

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def qkv(queries: int = 7, keys: int = 7, kv_heads: int = 4, dim: int = 3, dim_value: int = 5) -> tuple[Tensor, ...]:
    return tuple(
        torch.randn(2, heads, length, size, dtype=torch.float64)
        for heads, length, size in ((4, queries, dim), (kv_heads, keys, dim), (kv_heads, keys, dim_value))
    )


def softmax_loops(
    q: Tensor, k: Tensor, v: Tensor, sees: Callable[[int, int], bool], scale: float, bias: Tensor | None = None
) -> Tensor:
    """One query, one key at a time."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                total = 0.0
                for j in range(k.shape[2]):
                    if sees(i, j):
                        score = float(q[b, h, i] @ k[b, h // group, j]) * scale
                        weight = math.exp(score + (0.0 if bias is None else float(bias[h, i, j])))
                        total += weight
                        out[b, h, i] += weight * v[b, h // group, j]
                out[b, h, i] /= total if total else 1.0
    return out


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_softmax_is_its_formula(causal: bool, kv_heads: int, backend: str) -> None:
    q, k, v = qkv(kv_heads=kv_heads)
    part = vf.build(SoftmaxAttention.spec(backend=backend), causal=causal)
    wanted = softmax_loops(q, k, v, lambda i, j: j <= i or not causal, 3**-0.5)
    torch.testing.assert_close(part(q, k, v, Sides()), wanted, **EXACT)


def test_scale_bias_and_mask() -> None:
    q, k, v = qkv(5, 9)
    allowed, bias = torch.rand(5, 9) > 0.5, torch.randn(4, 5, 9, dtype=torch.float64)
    allowed[2] = False
    part = vf.build(SoftmaxAttention.spec(scale=0.3))
    got = part(q, k, v, Sides(mask=Dense(allowed), scores=(DenseBias(bias, per="head"),)))
    wanted = softmax_loops(q, k, v, lambda i, j: bool(allowed[i, j]), 0.3, bias)
    torch.testing.assert_close(got, wanted, **EXACT)
    assert not got[:, :, 2].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 3, 5, 99])
def test_local_is_softmax_in_a_window(window: int, causal: bool) -> None:
    q, k, v = qkv(11, 11)
    part = vf.build(LocalAttention.spec(window=window), causal=causal)
    side = window // 2

    def sees(i: int, j: int) -> bool:
        return i - window < j <= i if causal else abs(i - j) <= side

    torch.testing.assert_close(part(q, k, v, Sides()), softmax_loops(q, k, v, sees, 3**-0.5), **EXACT)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_linear_is_its_formula(causal: bool, kv_heads: int) -> None:
    q, k, v = qkv(kv_heads=kv_heads)
    part = vf.build(LinearAttention.spec(), causal=causal)

    def phi(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.exp())

    expanded = (t.repeat_interleave(4 // kv_heads, 1) for t in (phi(k), v))
    keys, values = expanded
    out = torch.zeros(2, 4, 7, 5, dtype=torch.float64)
    for i in range(7):
        seen = slice(0, i + 1 if causal else 7)
        weights = (phi(q)[:, :, i : i + 1] * keys[:, :, seen]).sum(-1)
        out[:, :, i] = (weights[..., None] * values[:, :, seen]).sum(2) / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(part(q, k, v, Sides()), out, **EXACT)


def test_dropout_drops_weights_and_scales_the_rest() -> None:
    q, k, _ = qkv(1, 4)
    v = torch.eye(4, dtype=torch.float64).expand(2, 4, 4, 4)
    part = vf.build(SoftmaxAttention.spec(dropout=0.5))
    weights = part.eval()(q, k, v, Sides())
    dropped = part.train()(q, k, v, Sides())
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * weights[kept])
    assert 0 < kept.sum() < kept.numel()


def test_a_backend_asked_for_by_name_serves_or_refuses() -> None:
    q, k, v = qkv()
    with pytest.raises(BackendError, match="refuses this call"):
        vf.build(SoftmaxAttention.spec(backend="flex"))(q, k, v, Sides())
    with pytest.raises(vf.ConfigError, match="did you mean 'sdpa'"):
        vf.build(SoftmaxAttention.spec(backend="sdap"))


WRONG: list[tuple[type[vf.Part], dict[str, Any], str]] = [
    (LocalAttention, {"window": 0}, "greater than 0"),
    (LocalAttention, {"window": 4}, "nearest: 3 or 5"),
    (LocalAttention, {}, "needs this field"),
    (SoftmaxAttention, {"dropout": 1.0}, "less than 1"),
    (SoftmaxAttention, {"scale": -1.0}, "greater than 0"),
    (SoftmaxAttention, {"causal": 1}, "valid boolean"),
]


@pytest.mark.parametrize(("part", "fields", "words"), WRONG)
def test_impossible_fields(part: type[vf.Part], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(vf.ConfigError, match=words):
        vf.build(part.spec(**fields))


def test_an_even_window_is_fine_where_it_looks_back_alone() -> None:
    assert vf.build(LocalAttention.spec(window=4), causal=True).window == 4
