import math

import torch
from torch.nn import functional as F

import variform as vf
from variform.parts.position.polar import PolarRotation


def test_products_are_of_lengths_and_angles() -> None:
    torch.manual_seed(0)
    part = PolarRotation(dim_head=6, heads=4, kv_heads=2).double()
    part.phase.data.uniform_(-7.0, 1.0)  # beyond both ends
    q, k = torch.randn(1, 4, 5, 6, dtype=torch.float64), torch.randn(1, 2, 7, 6, dtype=torch.float64)
    q_at, k_at = torch.tensor([0, 3, 4, 9, 11]), torch.tensor([2, 0, 5, 6, 7, 30, 1])
    turned_q, turned_k = part(q, k, q_at, k_at)
    found = turned_q @ turned_k.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(2)
    phase = part.phase.clamp(-2 * math.pi, 0)
    for head in range(4):
        for i in range(5):
            for j in range(7):
                d = torch.arange(6, dtype=torch.float64)
                angle = (k_at[j] - q_at[i]) * 10000.0 ** (-d / 6) + phase[head // 2, 0]
                lengths = F.softplus(q[0, head, i]) * F.softplus(k[0, head // 2, j])
                torch.testing.assert_close(found[0, head, i, j], (lengths * angle.cos()).sum())


def test_phases_may_be_of_query_heads() -> None:
    torch.manual_seed(0)
    of_keys, of_queries = (
        PolarRotation(dim_head=6, kv_heads=2, heads=4, phases=side).double() for side in ("keys", "queries")
    )
    of_keys.phase.data.uniform_(-7.0, 1.0)
    of_queries.phase.data = of_keys.phase.data.repeat_interleave(2, 0)
    q, k = torch.randn(1, 4, 5, 6, dtype=torch.float64), torch.randn(1, 2, 5, 6, dtype=torch.float64)
    products = [
        turned_q @ turned_k.repeat_interleave(2, 1).mT
        for turned_q, turned_k in (part(q, k, None, None) for part in (of_keys, of_queries))
    ]
    torch.testing.assert_close(products[1], products[0], rtol=0, atol=1e-12)


def test_moving_all_positions_changes_no_product() -> None:
    part = PolarRotation(dim_head=6, heads=2, kv_heads=2, uniform_start=True).double()
    q, k = torch.randn(2, 2, 5, 6, dtype=torch.float64), torch.randn(2, 2, 5, 6, dtype=torch.float64)
    here, there = part(q, k, None, None), part(q, k, torch.arange(5) + 100, torch.arange(5) + 100)
    torch.testing.assert_close(here[0] @ here[1].mT, there[0] @ there[1].mT)


def test_attention_sees_as_many_features_as_there_are() -> None:
    spec = {
        "part": "multi_head",
        "rotation": "polar",
        "kv_heads": 2,
        "attention": {"part": "softmax", "memory": {"part": "memory/learned", "count": 3}},
    }
    part = vf.build(spec, dim=16, heads=4, causal=True)
    assert part.attention.memory.keys.shape == (2, 3, 8)
    assert part.attention.memory.values.shape == (2, 3, 4)
    assert part(torch.randn(2, 5, 16), {}).shape == (2, 5, 16)
    state = part.init_state(2, 9, {})
    assert state["k"].shape[-1] == 8
    assert state["v"].shape[-1] == 4
