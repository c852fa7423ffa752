"""Attentions that go on with what an earlier one worked out, against formulas in float64."""

from typing import Any

import pytest
import torch

import variform as vf
from variform.core.spec import Spec
from variform.errors import ConfigError, ShapeError
from variform.parts.attention.across_layers import ScoreResidual, ValueResidual
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Sides
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.history import BeginHistory
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


def attention(spec: Spec, stream: str = "first_values") -> Any:
    """An attention as it stands in a stack: 4 heads, 2 key heads of 3 features."""
    step = Sublayer.spec(body=MultiHead.spec(attention=spec, kv_heads=2, dim_head=3))
    stack: Any = vf.build(
        LayerStack.spec(layers=[BeginHistory.spec(stream=stream), step]), dim=6, heads=4, causal=True
    ).double()
    return list(stack.layers)[1].body.attention


def test_the_first_hands_its_values_on_and_later_ones_mix() -> None:
    torch.manual_seed(0)
    q, k, v, first = (torch.randn(2, heads, 5, 3, dtype=torch.float64) for heads in (4, 2, 2, 2))
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    for learned in (False, True):
        part = attention(ValueResidual.spec(learned=learned))
        sides = Sides(x=x, streams={"first_values": ()})
        torch.testing.assert_close(part(q, k, v, sides), part.attention(q, k, v, Sides()), rtol=0, atol=0)
        assert sides.published["first_values"][0] is v
        sides = Sides(x=x, streams={"first_values": (first,)})
        share = torch.full((2, 2, 5), 0.5, dtype=torch.float64)
        if learned:
            share = torch.sigmoid(x @ part.mix.weight.T + part.mix.bias).transpose(1, 2)
        mixed = first + share.unsqueeze(-1) * (v - first)
        torch.testing.assert_close(part(q, k, v, sides), part.attention(q, k, mixed, Sides()), rtol=0, atol=1e-12)
        assert not sides.published


def test_values_of_other_heads_are_refused() -> None:
    part = attention(ValueResidual.spec())
    q, k, v = (torch.randn(2, heads, 5, 3) for heads in (4, 2, 2))
    with pytest.raises(ShapeError, match="all attentions need as many key heads"):
        part(q, k, v, Sides(streams={"first_values": (v[:, :1],)}))


def test_scores_are_those_before_and_its_own() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 3, dtype=torch.float64) for heads in (4, 2, 2))
    before = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    part = attention(ScoreResidual.spec(), "scores")
    own = q @ k.repeat_interleave(2, 1).mT / 3**0.5
    future = torch.ones(5, 5).triu(1).bool()
    for given, scores in (((), own), ((before,), own + before)):
        sides = Sides(streams={"scores": given})
        expected = scores.masked_fill(future, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
        torch.testing.assert_close(part(q, k, v, sides), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(sides.published["scores"][0], scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["soft_cap", "cope", "selective", "forget"])
def test_scores_handed_on_are_those_that_all_changes_leave(name: str) -> None:
    """Weights are a softmax of what is handed on, under the masks."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 3, dtype=torch.float64) for heads in (4, 2, 2))
    part = attention(ScoreResidual.spec(attention=SoftmaxAttention.spec(scores=[name])), "scores")
    sides = Sides(x=torch.randn(2, 5, 6, dtype=torch.float64), streams={"scores": ()})
    found = part(q, k, v, sides)
    future = torch.ones(5, 5).triu(1).bool()
    weights = sides.published["scores"][0].masked_fill(future, -torch.inf).softmax(-1)
    torch.testing.assert_close(found, weights @ v.repeat_interleave(2, 1), rtol=0, atol=1e-12)


def test_an_attention_without_scores_is_refused() -> None:
    with pytest.raises(ConfigError, match="'linear' has no scores that could be handed on"):
        attention(ScoreResidual.spec(attention="linear"), "scores")
