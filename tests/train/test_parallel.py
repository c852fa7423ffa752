"""Two processes on one machine: DDP and FSDP2 train as one process does on the joint batch."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.train import replicas, shards
from tests.train.runs import call, content, loss_of_run
from variform.train.config import make_config
from variform.train.folder import RunFolder
from variform.train.journal import read_metrics
from variform.train.run import resume, train
from variform.train.trained import load_run

pytestmark = pytest.mark.timeout(300)  # they start processes, which takes long on a busy machine


def plain(folder: Path, **settings: Any) -> dict[str, Any]:
    """Without dropout, whose noise differs from process to process."""
    made = content(folder, steps=20, **settings)
    made["model"] |= {"dropout": 0.0, "tie": True}
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(make_config(plain(folder, checkpoint_every=10)), quiet=True)
    return folder


def assert_same_losses(run: Path, reference: Path) -> None:
    rows, expected = read_metrics(run / "metrics.csv"), read_metrics(reference / "metrics.csv")
    assert [sorted(row) for row in rows] == [sorted(row) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name, value in row.items():
            assert value == pytest.approx(other[name], rel=2e-5), (name, row["step"])


def test_ddp_equals_one_process(alone: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(plain(tmp_path, devices=2, strategy="ddp")))
    done = call("train", config)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 2  # the second process prints nothing
    assert_same_losses(tmp_path / "runs" / "tiny-001", alone / "runs" / "tiny-001")


@pytest.mark.parametrize("dialect", [False, True], ids=["native", "xformers"])
def test_ddp_gradients_of_reversible_layers_equal_those_of_one_process(dialect: bool, tmp_path: Path) -> None:
    """An encoder and a decoder, two forward passes in one step; no unused parameters are looked for."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=replicas.main, args=(rank, str(tmp_path), dialect), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(130)
    assert [process.exitcode for process in processes] == [0, 0]
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    model, source, target = replicas.model_and_batch(dialect)
    replicas.loss_of(model, source, target).backward()
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_ddp_trains_reversible_layers_as_one_process_does(tmp_path: Path) -> None:
    for folder, more in (("one", {}), ("two", {"devices": 2, "strategy": "ddp"})):
        (tmp_path / folder).mkdir()
        config = tmp_path / folder / "tiny.yaml"
        config.write_text(yaml.safe_dump(plain(tmp_path / folder, executor="reversible", **more)))
        done = call("train", config)
        assert done.returncode == 0, done.stderr
    assert_same_losses(tmp_path / "two" / "runs" / "tiny-001", tmp_path / "one" / "runs" / "tiny-001")


def test_fsdp2_gradients_equal_those_of_one_process(tmp_path: Path) -> None:
    """Each process reads its share of a batch; their gradients, put together, are those of the joint batch."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=shards.main, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(250)
    assert [process.exitcode for process in processes] == [0, 0]
    model, x, y = shards.model_and_batch()
    loss = shards.loss_of(model, x, y)
    loss.backward()
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert found["gathered_layers"] == 3  # both layers and the root
    named = dict(model.named_parameters())
    assert set(found["gradients"]) == set(named)
    for name, gradient in found["gradients"].items():
        torch.testing.assert_close(gradient, named[name].grad, rtol=1e-10, atol=1e-12)


def test_fsdp2_trains(tmp_path: Path) -> None:
    """Weights made shard by shard, samples, the whole run; the saved weights have the loss that was logged."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(content(tmp_path, devices=2, strategy="fsdp2", steps=20)))
    done = call("train", config)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    rows = read_metrics(tmp_path / "runs" / "tiny-001" / "metrics.csv")
    losses = [row["train_loss"] for row in rows if "train_loss" in row]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert loss_of_run(tmp_path / "runs" / "tiny-001") == pytest.approx(rows[-1]["val_loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_resume_exactly(strategy: str, tmp_path: Path) -> None:
    """With dropout, from weights that FSDP2 makes shard by shard; the second half is run twice."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(content(tmp_path, devices=2, strategy=strategy, steps=20)))
    done = call("train", config)
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "runs" / "tiny-001")
    before = run.metrics.read_bytes()
    run.checkpoint(20).unlink()
    run.summary.unlink()
    assert run.saved_steps() == [15]
    done = call("train", "--resume", run.path)
    assert done.returncode == 0, done.stderr
    assert "after step 15" in done.stdout
    assert run.metrics.read_bytes() == before
    load_run(run.path)


@pytest.mark.slow
def test_shards_are_drawn_apart(tmp_path: Path) -> None:
    """Weights that are made shard by shard are not one shard's values again and again."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(content(tmp_path, devices=2, strategy="fsdp2", steps=1, lr=1e-9, warmup=0)))
    done = call("train", config)
    assert done.returncode == 0, done.stderr
    model, _ = load_run(tmp_path / "runs" / "tiny-001")
    one, two = model.stacks[0].layers[0].sublayers[1].body.up.weight.detach().chunk(2)
    assert not torch.allclose(one, two, atol=1e-3)
    assert one.std() == pytest.approx(0.02, rel=0.2)
    assert two.std() == pytest.approx(0.02, rel=0.2)


def test_a_batch_must_divide_over_the_processes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size: must divide evenly over 4 processes .*nearest: 4 or 8"):
        make_config(content(tmp_path, devices=4))


def test_a_launcher_needs_a_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"train\.run: under a launcher the run folder must be named"):
        train(make_config(content(tmp_path)), quiet=True)


def test_other_devices_may_go_on_with_a_run(alone: Path, tmp_path: Path) -> None:
    """What a step sees does not depend on the number of processes: a run may move."""
    run = RunFolder(Path(shutil.copytree(alone / "runs" / "tiny-001", tmp_path / "run")))
    run.checkpoint(20).unlink()
    run.summary.unlink()
    resume(run.path, quiet=True)
    assert run.metrics.read_bytes() == (alone / "runs" / "tiny-001" / "metrics.csv").read_bytes()
