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
