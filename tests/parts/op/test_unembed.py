import pytest
import torch
from torch.nn import functional as F

import variform as vf
from variform.parts.op.tokenwise import EmbeddingOp, LinearOp
from variform.parts.op.unembed import Unembed


def test_logits_are_products_with_the_vectors() -> None:
    op = vf.build(Unembed.spec(embedding=EmbeddingOp.spec(classes=7, out=4), scale=0.5)).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(op(x), F.linear(x, op.embedding.weight) * 0.5)
    assert op(x).shape == (2, 3, 7)
    one = vf.build(Unembed.spec(embedding=EmbeddingOp.spec(classes=7, out=4))).double()
    assert torch.equal(one(x), x @ one.embedding.weight.T)


def test_only_an_embedding_has_vectors() -> None:
    with pytest.raises(vf.ConfigError, match="unembed needs an embedding, not op 'linear'"):
        vf.resolve(Unembed.spec(embedding=LinearOp.spec(dim=4)))
    with pytest.raises(vf.ConfigError, match="unembed needs an embedding, not LinearOp"):
        Unembed(embedding=LinearOp(dim=4, init_std=None))


def test_features_must_be_those_of_the_embedding() -> None:
    spec = vf.resolve(Unembed.spec(embedding=EmbeddingOp.spec(classes=7, out=4)))
    assert Unembed.shapes(spec.args, ((2, 3, 4),)) == ((2, 3, 7),)
    with pytest.raises(vf.ShapeError, match="unembed works on 4 features"):
        Unembed.shapes(spec.args, ((2, 3, 5),))
