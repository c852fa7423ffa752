"""Experts spread over two processes compute what one process computes on the joint batch."""

from typing import Any

import pytest
import torch

import variform as vf
from tests.train import spread
from variform.train.experts import spread_experts


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two processes found, on their own and under DDP."""
    folder = tmp_path_factory.mktemp("spread")
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=spread.main, args=(rank, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(250)
    assert [process.exitcode for process in processes] == [0, 0]
    names = ("found0", "found1", "dialect0", "dialect1")
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in names]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ddp", [False, True])
def test_two_processes_equal_one(ddp: bool, found: Any) -> None:
    both = [runs[ddp] for runs in found[:2]]
    model, x = spread.model_and_batch()
    loss = spread.loss_of(model, x)
    loss.backward()
    torch.testing.assert_close((both[0]["loss"] + both[1]["loss"]) / 2, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([one["out"] for one in both]), model(x).detach(), rtol=1e-10, atol=1e-12)
    named = dict(model.named_parameters())
    assert set(both[0]["gradients"]) | set(both[1]["gradients"]) == set(named)
    assert not set(both[0]["kept"]) & set(both[1]["kept"])
    for name, parameter in named.items():
        here = [one["gradients"][name] for one in both if name in one["gradients"]]
        assert len(here) == (1 if ".experts." in name else 2), name
        # Under DDP each process has the gradient of the mean of their losses, else its part of that of the sum.
        got = here[0] if ddp else sum(here) / 2
        torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-12)


def test_a_process_group_is_needed() -> None:
    model, _ = spread.model_and_batch()
    with pytest.raises(vf.ConfigError, match="init_process_group"):
        spread_experts(model)


@pytest.mark.timeout(300)
def test_experts_of_the_xformers_dialect_may_be_elsewhere(found: Any) -> None:
    both = found[2:]
    torch.manual_seed(5)
    _, x = spread.model_and_batch()
    torch.manual_seed(5)
    part = spread.dialect_part()
    loss = spread.dialect_loss(part, x)
    loss.backward()
    torch.testing.assert_close((both[0]["loss"] + both[1]["loss"]) / 2, loss.detach(), rtol=1e-12, atol=0)
    gate = sum(one["gradients"]["gate.wg.weight"] for one in both) / 2
    torch.testing.assert_close(gate, part.gate.wg.weight.grad, rtol=1e-9, atol=1e-12)
    for number, expert in enumerate(part.experts):
        for name, parameter in expert.named_parameters():
            got = both[number // 2]["gradients"][f"moe.experts.{number % 2}.{name}"] / 2
            torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-12)
