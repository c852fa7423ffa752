"""Learning from preferences, against the formula of the paper."""

import copy

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.wrappers import Preference


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    net: torch.nn.Module = vf.build(vf.models.gpt(vocab_size=11, dim=8, depth=1, heads=2, max_seq_len=9)).double()
    return net


def ids(seed: int, batch: int = 3, length: int = 8) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(seed))


def by_hand(net: torch.nn.Module, rows: Tensor, counts: Tensor, average: bool) -> Tensor:
    logs = net(rows).log_softmax(-1)
    sums = []
    for row, count, log in zip(rows, counts, logs, strict=True):
        each = [log[i - 1, row[i]] for i in range(1, len(row)) if count[i]]
        sums.append(torch.stack(each).mean() if average else torch.stack(each).sum())
    return torch.stack(sums)


@pytest.mark.parametrize("average", [False, True])
def test_the_formula(average: bool) -> None:
    objective = Preference(model(), beta=0.3, average=average)
    first = copy.deepcopy(objective.policy)
    with torch.no_grad():
        for param in objective.policy.parameters():
            param += 0.1 * torch.randn_like(param)
    better, worse = ids(1), ids(2)
    counts = torch.arange(8) >= torch.tensor([[2], [3], [4]])
    others = counts & (torch.arange(8) < torch.tensor([[8], [6], [7]]))
    margins = [
        by_hand(net, better, counts, average) - by_hand(net, worse, others, average)
        for net in (objective.policy, first)
    ]
    wanted = -(0.3 * (margins[0] - margins[1])).sigmoid().log().mean()
    torch.testing.assert_close(objective(better, worse, counts, others), wanted)
    changed = torch.where(torch.arange(8) < torch.tensor([[8], [6], [7]]), worse, 0)
    torch.testing.assert_close(objective(better, changed, counts, others), wanted)


def test_at_first_the_loss_is_log_two_and_training_prefers() -> None:
    objective = Preference(model())
    better, worse = ids(1), ids(2)
    torch.testing.assert_close(objective(better, worse), torch.tensor(2.0, dtype=torch.float64).log())
    before = [param.clone() for param in objective.reference.parameters()]
    optimiser = torch.optim.Adam(objective.trainable(), lr=1e-2)
    for _ in range(10):
        optimiser.zero_grad()
        objective(better, worse).backward()
        optimiser.step()
    assert objective(better, worse) < 0.6
    assert all(torch.equal(a, b) for a, b in zip(before, objective.reference.parameters(), strict=True))
    assert all(param.grad is None and not param.requires_grad for param in objective.reference.parameters())


def test_the_reference_stays_in_evaluation() -> None:
    objective = Preference(model()).train()
    assert objective.policy.training
    assert not any(module.training for module in objective.reference.modules())
    assert not objective.eval().policy.training


def test_what_cannot_work_is_refused() -> None:
    net = model()
    with pytest.raises(vf.ConfigError, match="move along"):
        Preference(net, reference=net)
    with pytest.raises(vf.ConfigError, match="positive"):
        Preference(net, beta=0)
    with pytest.raises(vf.ShapeError, match="which tokens count"):
        Preference(net)(ids(1), ids(2), torch.ones(3, 7, dtype=torch.bool))
