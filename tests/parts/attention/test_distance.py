"""Attention by distance against its formula, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError
from variform.parts.attention.distance import DistanceAttention, LengthMemory
from variform.parts.attention.memory import LearnedMemory
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Sides

FACTS = {"kv_heads": 2, "dim_head": 3, "causal": False}


def given() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 3, dtype=torch.float64) for heads in (4, 2, 2))
    return q, k, v


def expected(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    distance = (q.unsqueeze(3) - k.unsqueeze(2)).square().sum(-1)
    return (-distance * scale).softmax(-1) @ v


@pytest.mark.parametrize("scale", [None, 0.3])
def test_scores_are_squared_distances(scale: float | None) -> None:
    q, k, v = (x.requires_grad_() for x in given())
    part = vf.build(DistanceAttention.spec(attention=SoftmaxAttention.spec(scale=scale)), **FACTS)
    mine, plain = part(q, k, v, Sides()), expected(q, k, v, scale or 3**-0.5)
    torch.testing.assert_close(mine, plain, rtol=0, atol=1e-12)
    direction = torch.randn_like(plain)
    grads: list[Any] = [torch.autograd.grad((out * direction).sum(), (q, k, v)) for out in (mine, plain)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


def test_memory_is_measured_by_distance_too() -> None:
    q, k, v = given()
    memory = LengthMemory.spec(memory=LearnedMemory.spec(count=2, std=1.0))
    part = vf.build(DistanceAttention.spec(attention=SoftmaxAttention.spec(memory=memory)), **FACTS).double()
    learned = part.attention.memory.memory
    keys, values = (torch.cat((m.expand(2, -1, -1, -1), x), 2) for m, x in ((learned.keys, k), (learned.values, v)))
    torch.testing.assert_close(part(q, k, v, Sides()), expected(q, keys, values, 3**-0.5), rtol=0, atol=1e-12)


def test_memories_of_the_other_attention_are_refused() -> None:
    x = torch.randn(1, 1, 3, 4)
    plain = LearnedMemory.spec(count=2)
    for wrong in (
        DistanceAttention.spec(attention=SoftmaxAttention.spec(memory=plain)),
        SoftmaxAttention.spec(memory=LengthMemory.spec(memory=plain)),
    ):
        with pytest.raises(vf.ShapeError, match="with_length"):
            vf.build(wrong, heads=1, kv_heads=1, dim_head=4)(x, x, x, Sides())


def test_what_reads_queries_finds_them_as_they_are() -> None:
    attention = SoftmaxAttention.spec(scores=["cope"])
    with pytest.raises(ConfigError, match="'cope' reads queries, which are made longer"):
        vf.build(DistanceAttention.spec(attention=attention), **FACTS, heads=4)
