"""Feedback between passes: a model of the core, one pass while writing, models that do not fit."""

import pytest
import torch
from torch import nn

from variform.core.build import build
from variform.errors import ConfigError
from variform.models import gpt
from variform.wrappers.feedback import Feedback
from variform.wrappers.transitions import TRANSITIONS


def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = build(gpt(vocab_size=7, dim=16, depth=2, heads=2, max_seq_len=12)).double()
    return made


class Nothing(nn.Module):
    """A transition that leaves the stream as it is."""

    def forward(self, latents: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        return stream


@pytest.mark.parametrize("name", TRANSITIONS)
def test_transitions(name: str) -> None:
    torch.manual_seed(0)
    objective = Feedback(model(), [(2, 1), (1, 2)], [TRANSITIONS[name](16) for _ in range(2)], passes=3).double()
    loss = objective(torch.randint(0, 7, (2, 6)))
    loss.backward()
    assert all(param.grad is not None for param in objective.transitions.parameters())


def test_a_transition_that_does_nothing() -> None:
    net, ids = model(), torch.randint(0, 7, (2, 6))
    objective = Feedback(net, [(2, 1), (1, 2)], [Nothing(), Nothing()], passes=3)
    for logits in objective.answers(ids):
        torch.testing.assert_close(logits, net(ids))
    made = objective.generate(ids, 4, lambda logits: logits.argmax(-1))
    rest = torch.cat((ids, made), 1)
    assert torch.equal(net(rest)[:, 5:-1].argmax(-1), made)


def test_what_is_written_is_what_a_model_with_features_of_each_token_writes() -> None:
    """Token by token every token gets what the one before became with its own features; as many passes tell it too."""
    torch.manual_seed(0)
    objective = Feedback(model()).double().eval()
    ids = torch.randint(0, 7, (2, 3))
    made = objective.generate(ids, 4, lambda logits: logits.argmax(-1), passes=9)
    whole = torch.cat((ids, made), 1)
    settled = objective.answers(whole, passes=9)[-1]
    assert torch.equal(settled[:, 2:-1].argmax(-1), made)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="with a head"):
        Feedback(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="out of range"):
        Feedback(model(), [(3, 1)])
    with pytest.raises(ConfigError, match="each of the 1"):
        Feedback(model(), transitions=[Nothing(), Nothing()])


def test_padding_on_either_side_changes_nothing() -> None:
    objective = Feedback(model(), [(2, 1), (1, 2)], [TRANSITIONS["glu"](16) for _ in range(2)], passes=3)
    objective.double().eval()
    ids = torch.randint(0, 7, (2, 6))
    valid = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    alone = objective.answers(ids[1:, :3])
    right = objective.answers(ids, valid=valid)
    left = objective.answers(ids.roll(3, 1), valid=valid.roll(3, 1))
    for n in range(3):
        torch.testing.assert_close(right[n][1:, :3], alone[n], rtol=0, atol=1e-12)
        torch.testing.assert_close(left[n][1:, 3:], alone[n], rtol=0, atol=1e-12)
    losses = [objective(ids, valid), objective(ids.masked_fill(~valid, 6), valid)]
    losses.append(objective(ids.roll(3, 1), valid.roll(3, 1)))
    alone_again = [objective.losses(row[:-1][None], row[1:][None]).each for row in (ids[0], ids[1, :3])]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-12)
    first = (alone_again[0][0] * 5 + alone_again[1][0] * 2) / 7
    found = objective.losses(ids[:, :-1], ids[:, 1:], valid[:, 1:], valid=valid[:, :-1]).each
    torch.testing.assert_close(found[0], first, rtol=0, atol=1e-12)


def test_documents_are_not_fed_into_one_another() -> None:
    objective = Feedback(model()).double().eval()
    ids = torch.randint(0, 7, (1, 6))
    both = objective.answers(ids, segments=torch.tensor([[0, 0, 0, 1, 1, 1]]))[-1]
    torch.testing.assert_close(both[:, 3:], objective.answers(ids[:, 3:])[-1], rtol=0, atol=1e-12)


def test_activations_that_are_computed_again_and_compilation() -> None:
    torch.manual_seed(0)
    objective = Feedback(model(), [(2, 1), (1, 2)], [TRANSITIONS["glu"](16) for _ in range(2)], jitter=0.0).double()
    ids = torch.randint(0, 7, (2, 6))
    grads = []
    for executor in ("plain", "checkpoint"):
        objective.model.stacks[0].executor = executor
        objective.zero_grad()
        objective(ids).backward()
        grads.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)
    objective.eval()
    compiled = torch.compile(lambda x: objective(x), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), objective(ids), rtol=0, atol=1e-12)
