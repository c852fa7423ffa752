"""Embeddings of further ids."""

import torch

import variform as vf
from variform.parts.embedding.summed import SummedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding


def test_what_is_added_is_added_once() -> None:
    further = [TokenEmbedding.spec(vocab_size=3), TokenEmbedding.spec(vocab_size=2)]
    spec = SummedEmbedding.spec(embedding=TokenEmbedding.spec(), further=further, names=("a", "b"))
    part = vf.build(spec, vocab_size=5, dim=4)
    ids, other = torch.tensor([[1, 4, 0]]), torch.tensor([[0, 1, 1]])
    streams = {"further_ids": {"a": other, "b": other}, "added": torch.randn(1, 3, 4)}
    wanted = part.embedding.weight[ids] + part.further[0].weight[other] + part.further[1].weight[other]
    torch.testing.assert_close(part(ids, streams), wanted + streams["added"])
