"""Heads against their formulas; padding does not count."""

import pytest
import torch

import variform as vf
from variform.core.spec import Shared
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.head.heads import ClassifierHead, LMHead, PoolHead, TiedLMHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack

X = torch.randn(3, 5, 4, dtype=torch.float64)
VALID = torch.tensor([[True] * 5, [False, True, True, False, False], [False, False, False, False, True]])


def test_language_model_heads_project() -> None:
    head = vf.build(LMHead.spec(bias=True), vocab_size=7, dim=4).double()
    wanted = X @ head.project.weight.T + head.project.bias
    torch.testing.assert_close(head(X, {}), wanted)


def test_a_tied_head_compares_with_the_tokens_vectors() -> None:
    tokens = Shared("tokens", TokenEmbedding.spec())
    spec = Transformer.spec(
        embedding=tokens,
        stacks=[LayerStack.spec(layers=[])],
        head=TiedLMHead.spec(embedding=tokens),
        dim=4,
        vocab_size=7,
    )
    model = vf.build(spec).double()
    assert model.head.embedding is model.embedding
    assert len(list(model.parameters())) == 1
    ids = torch.tensor([[1, 6]])
    torch.testing.assert_close(model(ids), model.embedding.weight[ids] @ model.embedding.weight.T)


POOLED = {
    "mean": lambda row, valid: row[valid].mean(0),
    "first": lambda row, valid: row[valid][0],
    "last": lambda row, valid: row[valid][-1],
}


@pytest.mark.parametrize("pool", POOLED)
def test_pooling_counts_real_tokens_alone(pool: str) -> None:
    head = vf.build(PoolHead.spec(pool=pool))
    wanted = torch.stack([POOLED[pool](row, valid) for row, valid in zip(X, VALID, strict=True)])
    torch.testing.assert_close(head(X, {"valid": VALID}), wanted)
    everything = torch.stack([POOLED[pool](row, torch.ones(5, dtype=torch.bool)) for row in X])
    torch.testing.assert_close(head(X, {}), everything)
    poisoned = torch.where(VALID.unsqueeze(-1), X, torch.full_like(X, torch.nan))
    torch.testing.assert_close(head(poisoned, {"valid": VALID}), wanted)


@pytest.mark.parametrize("pool", POOLED)
def test_a_row_of_padding_alone_is_finite(pool: str) -> None:
    assert torch.isfinite(vf.build(PoolHead.spec(pool=pool))(X, {"valid": torch.zeros(3, 5, dtype=torch.bool)})).all()


def test_a_classifier_pools_and_projects() -> None:
    head = vf.build(ClassifierHead.spec(classes=3), dim=4).double()
    wanted = X.mean(1) @ head.project.weight.T + head.project.bias
    torch.testing.assert_close(head(X, {}), wanted)


def test_unknown_pooling() -> None:
    with pytest.raises(vf.ConfigError, match="did you mean 'mean'"):
        vf.build(PoolHead.spec(pool="maen"))
