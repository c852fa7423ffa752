from typing import Any

import pytest
import torch

import variform as vf
from variform.parts.attention.memory import LearnedMemory
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


def model(memory: int, **options: Any) -> Any:
    attention = SoftmaxAttention.spec(memory=LearnedMemory.spec(count=memory, std=1.0) if memory else None)
    mixer = MultiHead.spec(attention=attention, kv_heads=2, **options)
    return vf.build(LayerStack.spec(layers=[Sublayer.spec(body=mixer)], dim=16, heads=4, causal=True)).double().eval()


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, memory: LearnedMemory) -> torch.Tensor:
    """Scores of each part written out, joined, one softmax."""
    k, v, mk, mv = (t.repeat_interleave(2, -3) for t in (k, v, memory.keys, memory.values))
    length = q.shape[2]
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    first = q @ mk.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = torch.cat((first, scores), -1).softmax(-1)
    return weights[..., : mk.shape[-2]] @ mv + weights[..., mk.shape[-2] :] @ v


def test_every_query_attends_to_it() -> None:
    attention = model(3).layers[0].body.attention
    q, k, v = torch.randn(2, 4, 5, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    q, k, v = q.double(), k.double(), v.double()
    from variform.parts.kinds import Sides

    torch.testing.assert_close(attention(q, k, v, Sides()), by_hand(q, k, v, attention.memory))


@pytest.mark.parametrize("options", [{}, {"position_bias": "alibi"}, {"position_bias": "t5"}, {"rotation": "rotary"}])
def test_it_is_not_moved_by_positions_nor_hidden_by_masks(options: dict[str, Any]) -> None:
    stack = model(3, **options)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 2)
    packed = stack(x, {"segments": segments, "positions": places})
    torch.testing.assert_close(packed[:, :3], stack(x[:, :3], {}))
    torch.testing.assert_close(packed[:, 3:], stack(x[:, 3:], {}))
    valid = torch.tensor([[False, False, True, True, True, True, True]] * 2)
    shifted = (torch.arange(7) - 2).clamp(min=0)
    torch.testing.assert_close(stack(x, {"valid": valid, "positions": shifted})[:, 2:], stack(x[:, 2:], {}))


def test_it_changes_the_result_and_learns() -> None:
    stack, x = model(3), torch.randn(2, 7, 16, dtype=torch.float64)
    before = stack(x, {})
    memory = stack.layers[0].body.attention.memory
    before.square().sum().backward()
    assert memory.keys.grad.abs().sum() > 0
    memory.values.data += 1
    assert not torch.allclose(stack(x, {}), before)
