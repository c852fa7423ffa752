"""Vectors of tokens for every feedforward, against the formula."""

from typing import Any

import torch

import variform as vf
from variform.parts.embedding.deep import DeepEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


def test_each_feedforward_takes_the_next_vector() -> None:
    bodies = [MLP.spec(), MultiHead.spec(), MLP.spec(), MLP.spec()]
    stack = LayerStack.spec(layers=[Sublayer.spec(body=body) for body in bodies])
    embedding = DeepEmbedding.spec(embedding=TokenEmbedding.spec(), depth=2)
    model: Any = vf.build(
        Transformer.spec(embedding=embedding, stacks=[stack], dim=6, heads=2, vocab_size=11, causal=True)
    ).double()
    torch.nn.init.normal_(model.embedding.gains)
    ids = torch.randint(0, 11, (2, 5))
    x = model.embedding.embedding(ids, {})
    gains = iter((model.embedding.gains[ids][:, :, 0], None, model.embedding.gains[ids][:, :, 1], None))
    for step in next(model.stacks.in_order()).layers:
        branch, gain = step.body(step.norm(x), {}), next(gains)
        x = x + (branch if gain is None else branch * gain)
    torch.testing.assert_close(model(ids), x, rtol=0, atol=1e-12)
