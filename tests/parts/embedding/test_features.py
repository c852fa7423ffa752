"""Embeddings of features, and of another width than the model."""

import pytest
import torch

import variform as vf
from variform.parts.embedding.factorised import FactorisedEmbedding
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.position.absolute import LearnedPosition, SinusoidalPosition
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

DIM, SEQ = 8, 7


def model(embedding: vf.Spec, max_seq_len: int = SEQ) -> Transformer:
    layer = TransformerLayer.spec(sublayers=[Sublayer.spec(body=MultiHead.spec())])
    stack = LayerStack.spec(layers=[layer])
    return vf.build(
        Transformer.spec(embedding=embedding, stacks=[stack], dim=DIM, heads=2, max_seq_len=max_seq_len)
    ).double()


def test_adds_positions() -> None:
    part = vf.build(FeatureEmbedding.spec(dim=DIM, position=SinusoidalPosition.spec()))
    x = torch.randn(2, SEQ, DIM)
    torch.testing.assert_close(part(x, {}), x + part.position(None, SEQ, x))
    moved = part(x, {"positions": torch.arange(SEQ) + 3})
    torch.testing.assert_close(moved, x + part.position(torch.arange(SEQ) + 3, SEQ, x))
    assert part.example_inputs(3, 5).shape == (3, 5, DIM)


def test_class_tokens_stand_in_front_whatever_the_padding() -> None:
    spec = FeatureEmbedding.spec(class_tokens=2, position=LearnedPosition.spec(max_seq_len=SEQ + 2))
    net = model(spec)
    torch.nn.init.normal_(net.embedding.class_token)
    x = torch.randn(2, SEQ, DIM, dtype=torch.float64)
    whole = net(x[:, :4])
    assert whole.shape == (2, 6, DIM)
    for start in (0, 2):
        valid = torch.zeros(2, SEQ, dtype=torch.bool)
        valid[:, start : start + 4] = True
        padded = torch.randn_like(x)
        padded[:, start : start + 4] = x[:, :4]
        out = net(padded, valid=valid)
        real = torch.cat((out[:, :2], out[:, 2 + start : 6 + start]), 1)
        torch.testing.assert_close(real, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.randn(2, SEQ), torch.randn(2, SEQ, DIM + 1), torch.zeros(2, SEQ, DIM).long()])
def test_other_inputs_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(vf.ShapeError, match="features are floats of shape"):
        vf.build(FeatureEmbedding.spec(dim=DIM))(bad, {})


def test_class_tokens_belong_to_no_document() -> None:
    part = vf.build(FeatureEmbedding.spec(dim=DIM, class_tokens=1))
    with pytest.raises(vf.ShapeError, match="'segments' cannot be used"):
        part(torch.randn(1, SEQ, DIM), {"segments": torch.zeros(1, SEQ).long()})


def test_factorised_maps_a_narrow_embedding() -> None:
    narrow = TokenEmbedding.spec(position=LearnedPosition.spec(max_seq_len=SEQ), vocab_size=11)
    part = vf.build(FactorisedEmbedding.spec(embedding=narrow, dim_embedding=3, dim=DIM))
    ids = torch.randint(0, 11, (2, SEQ))
    torch.testing.assert_close(part(ids, {}), part.project(part.embedding(ids, {})))
    assert part.embedding.weight.shape == (11, 3)
    assert part.embedding.position.weight.shape == (SEQ, 3)
    assert part.vocab_size == 11
    assert model(FactorisedEmbedding.spec(embedding=narrow, dim_embedding=3))(ids).shape == (2, SEQ, DIM)


def test_inputs_of_another_width_are_mapped_first() -> None:
    part = vf.build(FeatureEmbedding.spec(dim=DIM, dim_in=3, bias=True, position=SinusoidalPosition.spec()))
    x = torch.randn(2, SEQ, 3)
    torch.testing.assert_close(part(x, {}), part.project(x) + part.position(None, SEQ, torch.empty(0)))
    assert part.example_inputs(2, 5).shape == (2, 5, 3)
    with pytest.raises(vf.ShapeError, match="features are floats of shape"):
        part(torch.randn(2, SEQ, DIM), {})
    with pytest.raises(vf.ConfigError, match="no offset"):
        vf.build(FeatureEmbedding.spec(dim=DIM, bias=True))


def test_features_are_added_before_class_tokens_and_norm() -> None:
    net = model(FeatureEmbedding.spec(class_tokens=1, dim_in=3))
    x, more = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, DIM, dtype=torch.float64)
    out = net.embedding(x, {"added": more})[0]
    torch.testing.assert_close(out[:, 1:], net.embedding.project(x) + more)
    assert net(x, added=more).shape == (2, 6, DIM)
