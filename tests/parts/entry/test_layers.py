"""Branches that read earlier layers, against formulas in float64; what keeps them from fitting."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.core.spec import Spec
from variform.errors import ConfigError, ShapeError
from variform.parts.entry.layers import LayerAttention, LayerMixture
from variform.parts.entry.pooled import LayerPooling
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.history import BeginHistory
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

FACTS = {"dim": 6, "heads": 2, "causal": True}


def history(count: int) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return tuple(torch.randn(2, 5, 6, dtype=torch.float64) for _ in range(count))


def entry(spec: Spec) -> Any:
    """An entry as it stands in a stack."""
    layers = [BeginHistory.spec(), Sublayer.spec(body=MultiHead.spec(), entry=spec)]
    stack: Any = vf.build(LayerStack.spec(layers=layers), **FACTS).double()
    return list(stack.layers)[1].entry


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("weights", ["softmax", "relu"])
@pytest.mark.parametrize("views", [1, 3])
def test_a_mixture_is_the_sum_of_its_formula(weights: str, views: int) -> None:
    part = entry(LayerMixture.spec(count=3, views=views, weights=weights))
    *before, x = history(3)
    found, published = part(x, {"history": tuple(before)})
    assert len(found) == views
    assert all(kept is given for kept, given in zip(published["history"], (*before, x), strict=True))
    scores = rms(x, part.norm.weight) @ part.mix.weight.T + part.mix.bias
    for view in range(views):
        own = scores[..., 3 * view : 3 * view + 3]
        own = own.softmax(-1) if weights == "softmax" else own.relu()
        expected = sum(own[..., layer : layer + 1] * h for layer, h in enumerate((*before, x)))
        torch.testing.assert_close(found[view], expected, rtol=0, atol=1e-12)


def test_attention_over_layers_is_that_of_its_formula() -> None:
    part = entry(LayerAttention.spec(views=3, rank=4, activation="silu"))
    torch.nn.init.normal_(part.up)
    *before, x = history(3)
    found, _ = part(x, {"history": tuple(before)})
    inner = rms(x, part.norm.weight) @ part.down.weight.T
    change = (inner * inner.sigmoid()) @ part.up.T
    for view in range(3):
        query = rms(x + change[..., 6 * view : 6 * view + 6], part.query_norm.weight)
        scores = torch.stack([(query * rms(h, part.key_norm.weight)).sum(-1) / 6**0.5 for h in (*before, x)], -1)
        expected = sum(scores.softmax(-1)[..., layer : layer + 1] * h for layer, h in enumerate((*before, x)))
        torch.testing.assert_close(found[view], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [None, "rms_norm"])
def test_pooling_over_layers_is_that_of_its_formula(norm: str | None) -> None:
    part = entry(LayerPooling.spec(views=3, norm=norm, key_norm="rms_norm"))
    *before, x = history(4)
    found, _ = part(x, {"history": tuple(before)})
    asked = part.queries.expand(2, 5, 3, 6) if norm is None else None
    if norm is not None:
        asked = part.of_input(rms(x, part.norm.weight)).view(2, 5, 3, 6)
    hidden = torch.stack((*before, x), 2)
    maps = ((part.q, asked), (part.k, hidden), (part.v, hidden))
    q, k, v = (linear(t).view(2, 5, -1, 2, 3).transpose(2, 3) for linear, t in maps)
    weights = (q @ rms(k, part.key_norm.weight).mT / 3**0.5).softmax(-1)
    expected = part.out((weights @ v).transpose(2, 3).flatten(3))
    torch.testing.assert_close(torch.stack(found, 2), expected, rtol=0, atol=1e-12)


def test_a_history_of_another_length_is_refused() -> None:
    part = entry(LayerMixture.spec(count=3))
    *before, x = history(2)
    with pytest.raises(ShapeError, match="made for 3 inputs of steps, and the history has 2"):
        part(x, {"history": tuple(before)})


def test_a_history_needs_a_beginning() -> None:
    layers = [Sublayer.spec(body=MLP.spec(), entry=LayerMixture.spec(count=1))]
    with pytest.raises(ConfigError, match="reads the stream 'history', which no part before it publishes"):
        vf.resolve(LayerStack.spec(layers=layers), **FACTS)
    vf.resolve(LayerStack.spec(layers=[BeginHistory.spec(), *layers]), **FACTS)


def test_three_views_need_a_body_that_reads_them() -> None:
    views = LayerMixture.spec(count=1, views=3)
    for body, fits in ((MultiHead.spec(), True), (MLP.spec(), False)):
        stack = LayerStack.spec(layers=[BeginHistory.spec(), Sublayer.spec(body=body, entry=views)])
        if fits:
            vf.resolve(stack, **FACTS)
        else:
            with pytest.raises(ConfigError, match="reads its queries, keys and values off one input"):
                vf.resolve(stack, **FACTS)


def test_views_are_normed_and_reach_queries_keys_and_values() -> None:
    layers = [BeginHistory.spec(), Sublayer.spec(body=MultiHead.spec(), entry=LayerMixture.spec(count=1, views=3))]
    stack = vf.build(LayerStack.spec(layers=layers), **FACTS).double()
    step = list(stack.layers)[1]
    step.entry.softmax = False
    step.entry.mix.weight.data.zero_()
    step.entry.mix.bias.data = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    x = history(1)[0]
    keys, values = step.norm(0 * x), step.norm(0.5 * x)
    alone = step.body(step.norm(x), {"key_input": keys, "value_input": values})
    torch.testing.assert_close(stack(x, {}), x + alone, rtol=0, atol=1e-12)
