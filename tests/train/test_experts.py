"""Experts spread over two processes compute what one process computes on the joint batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

import variform as vf
from tests.train import spread
from tests.train.runs import content
from variform.parts.feedforward.mixture_of_experts import MixtureOfExperts
from variform.parts.feedforward.mlp import MLP
from variform.train.config import make_config
from variform.train.experts import spread_experts
from variform.train.journal import read_metrics
from variform.train.run import train


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
    names = ("found0", "found1", "dialect0", "dialect1", "sharded0")
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


def test_a_run_with_experts_trains(tmp_path: Path) -> None:
    spec = vf.models.gpt(vocab_size=9, dim=16, depth=2, heads=2, max_seq_len=24)
    experts = MixtureOfExperts.spec(experts=[MLP.spec(hidden=16)] * 4)
    spec = vf.override(spec, {"stacks.0.layers.*.sublayers.1.body": experts})
    made = content(tmp_path, steps=20, losses={"load_balance": 0.02})
    made["model"] = {**vf.to_dict(spec), "vocab_size": "from data"}
    found = []
    for executor in ("plain", "checkpoint"):
        made["train"] |= {"executor": executor, "name": executor}
        train(make_config(made), quiet=True)
        found.append(read_metrics(tmp_path / "runs" / f"{executor}-001" / "metrics.csv"))
    for row, other in zip(*found, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    losses = [row["train_loss"] for row in found[0] if "train_loss" in row]
    assert losses[-1] < losses[0]


def test_a_process_group_is_needed() -> None:
    model, _ = spread.model_and_batch()
    with pytest.raises(vf.ConfigError, match="init_process_group"):
        spread_experts(model)


@pytest.mark.timeout(300)
def test_experts_of_the_xformers_dialect_may_be_elsewhere(found: Any) -> None:
    both = found[2:4]
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


@pytest.mark.timeout(300)
def test_losses_have_gradients_where_weights_are_sharded(found: Any) -> None:
    """What a layer publishes beside its result is known to FSDP2 as well."""
    model, x = spread.model_and_batch()
    loss = spread.loss_of(model, x)
    loss.backward()
    torch.testing.assert_close(found[4]["loss"], loss.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[4]["gradients"][name], parameter.grad, rtol=1e-9, atol=1e-12)
