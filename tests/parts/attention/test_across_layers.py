"""Attentions that go on with what an earlier one worked out, against formulas in float64."""

from typing import Any

import pytest
import torch

import variform as vf
from variform.core.spec import Spec
from variform.errors import ShapeError
from variform.parts.attention.across_layers import ValueResidual
from variform.parts.kinds import Sides
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.history import BeginHistory
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


def attention(spec: Spec) -> Any:
    """An attention as it stands in a stack: 4 heads, 2 key heads of 3 features."""
    step = Sublayer.spec(body=MultiHead.spec(attention=spec, kv_heads=2, dim_head=3))
    stack: Any = vf.build(
        LayerStack.spec(layers=[BeginHistory.spec(stream="first_values"), step]), dim=6, heads=4, causal=True
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
