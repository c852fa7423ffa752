"""Predicting tokens and numbers, against the formula; generation with and without a cache."""

import pytest
import torch

import variform as vf
from variform.parts.embedding.numbers import NumberEmbedding
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.head.heads import LinearHead, LMHead
from variform.parts.head.joined import JoinedHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.position.absolute import LearnedPosition
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.wrappers import NextTokensAndNumbers

NUMBER = 4


def model(causal: bool = True, numbers: bool = True) -> Transformer:
    torch.manual_seed(0)
    tokens = TokenEmbedding.spec(init_std=1.0)
    inner = NumberEmbedding.spec(embedding=tokens, number_id=NUMBER) if numbers else tokens
    spec = Transformer.spec(
        embedding=PlacedEmbedding.spec(embedding=inner, position=LearnedPosition.spec(std=1.0)),
        stacks=[LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec())])],
        head=JoinedHead.spec(parts=[LMHead.spec(), LinearHead.spec(outputs=1)]),
        dim=8,
        heads=2,
        vocab_size=6,
        causal=causal,
        max_seq_len=9,
    )
    made: Transformer = vf.build(spec).double()
    return made


def sample(batch: int = 3, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 6, (batch, length))
    ids[:, 2::2] = NUMBER
    numbers = torch.randn(batch, length, dtype=torch.float64)
    return ids, torch.where(ids == NUMBER, numbers, torch.nan)


def test_the_loss_is_that_of_each_row_by_hand() -> None:
    objective = NextTokensAndNumbers(model(), NUMBER, weight=0.3)
    ids, numbers = sample()
    lengths = [7, 4, 5]
    valid = torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    found, errors = objective(ids, numbers, valid), []
    for row, length in enumerate(lengths):
        answer = objective.model(ids[row : row + 1, : length - 1], numbers=numbers[row : row + 1, : length - 1])[0]
        for place in range(length - 1):
            target = int(ids[row, place + 1])
            error = -answer[place, :6].log_softmax(-1)[target]
            if target == NUMBER:
                error = error + 0.3 * (answer[place, 6] - numbers[row, place + 1]) ** 2
            errors.append(error)
    torch.testing.assert_close(found, torch.stack(errors).mean())
    found.backward()
    assert all(bool(param.grad.isfinite().all()) for param in objective.parameters())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_feeds_numbers_back(temperature: float) -> None:
    objective = NextTokensAndNumbers(model(), NUMBER)
    ids, numbers = sample(2, 3)
    made = []
    for cache in (True, False):
        torch.manual_seed(2)
        made.append(objective.generate(ids, numbers, 9, temperature, use_cache=cache))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10, equal_nan=True)
    found = made[0]
    assert torch.equal(found.is_number, found.ids == NUMBER)
    assert torch.equal(found.numbers.isnan(), ~found.is_number)
    if temperature == 0:
        both = torch.cat((ids, found.ids), 1), torch.cat((numbers, found.numbers), 1)
        for step in range(3, 12):
            seen = slice(max(0, step - 9), step)
            answer = objective.model(both[0][:, seen], numbers=both[1][:, seen])[:, -1]
            assert torch.equal(answer[:, :6].argmax(-1), found.ids[:, step - 3])
            there = found.is_number[:, step - 3]
            torch.testing.assert_close(answer[there, 6], found.numbers[there, step - 3])


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(vf.ConfigError, match="causal=True"):
        NextTokensAndNumbers(model(causal=False), NUMBER)
    with pytest.raises(vf.ConfigError, match="NumberEmbedding"):
        NextTokensAndNumbers(model(numbers=False), NUMBER)
    ids, numbers = sample()
    with pytest.raises(vf.ShapeError, match="at least two"):
        NextTokensAndNumbers(model(), NUMBER)(ids[:, :1], numbers[:, :1])
