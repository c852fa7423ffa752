"""`NonAutoregressiveWrapper` against the installed x-transformers, where no draw is of Python's own generator."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair, unlike
from tests.parity.x_transformers.test_layers import BASE

LENGTH, TOKENS = 8, 13
SURE: dict[str, Any] = {"no_replace_prob": 0.0, "random_token_prob": 0.0, "use_simple_mdlm_loss_weight": False}


def net(package: Any, logits: int = TOKENS - 1) -> Any:
    layers = package.Encoder(**BASE)
    return package.TransformerWrapper(num_tokens=TOKENS, max_seq_len=LENGTH, attn_layers=layers, logits_dim=logits)


def built(critic: bool = False, **keywords: Any) -> Any:
    """The mask's token is the last, and no logit is its own, so that neither package draws it."""

    def build(package: Any) -> nn.Module:
        more = {"token_critic": net(package, 1)} if critic else {}
        given = {**SURE, "mask_id": TOKENS - 1, "steps": 4, **keywords, **more}
        made: nn.Module = package.NonAutoregressiveWrapper(net(package), **given)
        return made

    return build


def ids(batch: int = 3) -> Tensor:
    return torch.randint(0, TOKENS - 1, (batch, LENGTH), generator=torch.Generator().manual_seed(3))


def loss(model: nn.Module, **call: Any) -> Tensor:
    torch.manual_seed(5)
    parts = [part.double() for part in model(ids(), **call) if part is not None]
    return torch.stack([*parts, *(2 * part for part in parts)])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_plain_loss(schedule: str) -> None:
    theirs, mine = pair(built(schedule=schedule))
    agree(theirs, mine, loss)


def test_the_weighted_loss_is_upstreams_with_the_right_weight() -> None:
    """Upstream's is the mean over masked tokens of CE times s'(t) / (1 - s(t)); ours has -s'(t) L / m in its place."""
    theirs, mine = pair(built(use_simple_mdlm_loss_weight=True))
    torch.manual_seed(5)
    times = torch.empty(3).uniform_(0, 1)
    mask = torch.rand(3, LENGTH).argsort(-1) < ((1 - times) * LENGTH).clamp(min=1).unsqueeze(1)
    logits = theirs.net(torch.where(mask, TOKENS - 1, ids()))
    errors = nn.functional.cross_entropy(logits.transpose(1, 2), ids(), reduction="none")
    torch.manual_seed(5)
    wrong = (errors * (-1 / times).unsqueeze(1))[mask].mean()
    torch.testing.assert_close(theirs(ids()).loss, wrong.to(torch.float64), rtol=0, atol=1e-6)
    assert wrong < 0
    torch.manual_seed(5)
    right = torch.stack([errors[row][mask[row]].mean() for row in range(3)]).mean()
    torch.testing.assert_close(mine(ids()).loss, right, rtol=0, atol=1e-6)


CALLABLE = unlike("takes functions in the place of schedules, and refuses them", ValueError)


@CALLABLE
def test_the_critic_of_its_own() -> None:
    theirs, mine = pair(built(self_token_critic=True, schedule=torch.ones_like))
    agree(theirs, mine, lambda model: loss(model, generator_sample_temperature=0.7))


@CALLABLE
@pytest.mark.parametrize("only", [{}, {"only_train_critic": True}, {"only_train_generator": True}])
def test_another_models_critic(only: dict[str, Any]) -> None:
    theirs, mine = pair(built(critic=True, schedule=torch.ones_like, critic_loss_weight=0.5))
    agree(theirs, mine, lambda model: loss(model, generator_sample_temperature=0.7, **only))


@pytest.mark.parametrize("options", [{}, {"schedule": "cosine"}, {"critic": True}, {"self_token_critic": True}])
@pytest.mark.parametrize("batch", [None, 2])
def test_generation(options: dict[str, Any], batch: int | None) -> None:
    made = []
    for model in pair(built(**options)):
        torch.manual_seed(9)
        made.append(model.generate(batch_size=batch, start_temperature=0.8, filter_thres=0.5, noise_level_scale=0.7))
    assert torch.equal(*made)


@pytest.mark.parametrize("often", [0.0, 1.0])
def test_its_own_states_as_a_condition(often: float) -> None:
    theirs, mine = pair(built(self_cond=True, self_cond_train_prob=often))
    agree(theirs, mine, loss)
    made = []
    for model in (theirs, mine):
        torch.manual_seed(9)
        made.append(model.generate(batch_size=2))
    assert torch.equal(*made)
