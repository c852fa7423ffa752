"""Layers that are held in one order and run in another."""

import torch

import variform as vf
from variform.core.spec import Shared
from variform.parts.feedforward.mlp import MLP
from variform.stack.pool import LayerPool
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


def test_what_is_held_runs_where_it_is_named() -> None:
    shared = [Shared(f"layers.{i}", Sublayer.spec(body=MLP.spec())) for i in range(3)]
    stack = vf.build(LayerStack.spec(layers=[LayerPool.spec(layers=shared), shared[2], shared[0], shared[2]]), dim=6)
    pool = next(stack.layers.in_order())
    x = torch.randn(2, 5, 6)
    first, unused, last = pool.layers
    torch.testing.assert_close(stack(x, {}), last(first(last(x, {}), {}), {}))
    assert len(list(stack.parameters())) == 3 * len(list(unused.parameters()))
    vf.build(vf.resolve(stack.spec), dim=6).load_state_dict(stack.state_dict())
