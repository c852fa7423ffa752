"""Several heads side by side."""

import pytest
import torch

import variform as vf
from variform.core.spec import Shared
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.head.heads import ClassifierHead, LinearHead, LMHead, TiedLMHead
from variform.parts.head.joined import JoinedHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack

X = torch.randn(3, 5, 4, dtype=torch.float64)


def test_a_linear_head_maps_each_token() -> None:
    head = vf.build(LinearHead.spec(outputs=3, bias=True), dim=4).double()
    torch.testing.assert_close(head(X, {}), X @ head.project.weight.T + head.project.bias)


def test_answers_stand_one_behind_the_other() -> None:
    head = vf.build(JoinedHead.spec(parts=[LMHead.spec(), LinearHead.spec(outputs=2)]), vocab_size=7, dim=4).double()
    out = head(X, {})
    assert out.shape == (3, 5, 9)
    torch.testing.assert_close(out[..., :7], head.parts[0](X, {}))
    torch.testing.assert_close(out[..., 7:], head.parts[1](X, {}))


def test_one_of_them_may_be_tied() -> None:
    tokens = Shared("tokens", TokenEmbedding.spec())
    head = JoinedHead.spec(parts=[TiedLMHead.spec(embedding=tokens), LinearHead.spec(outputs=1)])
    model = vf.build(
        Transformer.spec(embedding=tokens, stacks=[LayerStack.spec(layers=[])], head=head, dim=4, vocab_size=7)
    )
    assert model.head.parts[0].embedding is model.embedding
    assert model(torch.tensor([[1, 6]])).shape == (1, 2, 8)


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(vf.ConfigError, match="some heads answer each token"):
        vf.build(JoinedHead.spec(parts=[LMHead.spec(), ClassifierHead.spec(classes=2)]), vocab_size=7, dim=4)
    with pytest.raises(vf.ConfigError, match="at least one head"):
        vf.build(JoinedHead.spec(parts=[]), dim=4)
