"""Numbers among tokens."""

import pytest
import torch

import variform as vf
from variform.parts.embedding.numbers import NumberEmbedding
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.position.absolute import LearnedPosition
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack

IDS = torch.tensor([[3, 1, 3], [0, 3, 2]])
NUMBERS = torch.tensor([[0.5, torch.nan, -2.0], [7.0, 0.0, torch.inf]], dtype=torch.float64)


def model() -> Transformer:
    inner = NumberEmbedding.spec(embedding=TokenEmbedding.spec(), number_id=3)
    placed = PlacedEmbedding.spec(embedding=inner, position=LearnedPosition.spec(std=1.0, max_seq_len=5))
    spec = Transformer.spec(embedding=placed, stacks=[LayerStack.spec(layers=[])], dim=4, vocab_size=5)
    made: Transformer = vf.build(spec).double()
    return made


def test_a_number_multiplies_its_tokens_vector_and_no_other() -> None:
    net = model()
    table = net.embedding.embedding.embedding.weight
    factor = torch.tensor([[0.5, 1, -2], [1, 0, 1]], dtype=torch.float64).unsqueeze(-1)
    wanted = table[IDS] * factor + net.embedding.position.weight[:3]
    out = net(IDS, numbers=NUMBERS)
    torch.testing.assert_close(out, wanted)
    out.sum().backward()
    assert all(bool(param.grad.isfinite().all()) for param in net.parameters())
    torch.testing.assert_close(net(IDS), table[IDS] + net.embedding.position.weight[:3])


def test_numbers_have_the_shape_of_the_tokens() -> None:
    with pytest.raises(vf.ShapeError, match="one a token"):
        model()(IDS, numbers=NUMBERS[:, :2])
    with pytest.raises(vf.ShapeError, match="one a token"):
        model()(IDS, numbers=IDS)
    plain = vf.build(vf.models.gpt(vocab_size=5, dim=4, depth=1, heads=1, max_seq_len=5))
    with pytest.raises(vf.ShapeError, match="no part of this model reads it"):
        plain(IDS, numbers=NUMBERS.float())


def test_what_is_added_is_not_multiplied() -> None:
    net, more = model(), torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(net(IDS, numbers=NUMBERS, added=more), net(IDS, numbers=NUMBERS) + more)
