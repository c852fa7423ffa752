"""Whole runs: what a folder holds, and resuming after a kill, an interruption and every other way to stop."""

import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import variform as vf
from tests.train.runs import call, command, content, log, loss_of_run, write_config
from variform.train.config import make_config
from variform.train.folder import RunFolder
from variform.train.journal import read_metrics
from variform.train.run import resume, train
from variform.train.trained import load_run

pytestmark = pytest.mark.timeout(300)  # they start processes, which takes long on a busy machine


def start(folder: Path, **settings: Any) -> dict[str, Any]:
    return train(make_config(content(folder, **settings)), quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, start(folder)


def test_summary_and_folder(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = whole
    run = folder / "runs" / "tiny-001"
    assert summary["run"] == str(run)
    assert json.loads((run / "summary.json").read_text()) == summary
    assert {p.name for p in run.iterdir()} == {
        "checkpoints", "config.yaml", "data.json", "loss.png", "metrics.csv", "model.safetensors", "samples.txt",
        "summary.json", "tensorboard", "vocabulary.json",
    }  # fmt: skip
    assert summary["ratio"] == summary["val_loss"] / summary["bigram_loss"]
    assert summary["tokens"] == 50 * 6 * 17
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-00000045.ckpt", "step-00000050.ckpt"]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert any(p.name.startswith("events") for p in (run / "tensorboard").iterdir())


def test_rows_of_the_loss_log(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = whole
    rows = read_metrics(folder / "runs" / "tiny-001" / "metrics.csv")
    assert [row["step"] for row in rows if "train_loss" in row] == [*range(3, 50, 3), 50]
    assert [row["step"] for row in rows if "val_loss" in row] == [10, 20, 30, 40, 50]
    assert rows[-1]["val_loss"] == summary["val_loss"] < rows[3]["val_loss"]
    assert all(row["tokens"] == row["step"] * 6 * 17 for row in rows)


def test_samples_are_early_and_final(whole: tuple[Path, dict[str, Any]]) -> None:
    text = (whole[0] / "runs" / "tiny-001" / "samples.txt").read_text()
    nothing, first, early, second, final = re.split(r"(--- sample after step \d+ ---)\n", text)
    assert (nothing, first, second) == ("", "--- sample after step 10 ---", "--- sample after step 50 ---")
    for sample in (early, final):
        assert sample.startswith("the")
        assert len(sample) == len("the") + 40 + len("\n\n")  # longer than the model's 24 positions
    assert early != final


def test_the_config_rebuilds_the_very_model(whole: tuple[Path, dict[str, Any]]) -> None:
    run = whole[0] / "runs" / "tiny-001"
    model, vocabulary = load_run(run)
    assert vf.load(run / "config.yaml") == model.spec
    assert vf.resolve(vf.load(run / "config.yaml")) == model.spec
    plain = yaml.safe_load((run / "config.yaml").read_text())
    config = make_config(plain)
    assert config.plain(config.spec(len(vocabulary)), plain["data"]["text"]) == plain


def test_saved_weights_have_the_logged_loss(whole: tuple[Path, dict[str, Any]]) -> None:
    assert loss_of_run(whole[0] / "runs" / "tiny-001") == pytest.approx(whole[1]["val_loss"], rel=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_another(whole: tuple[Path, dict[str, Any]]) -> None:
    folder = whole[0]
    start(folder, name="again")
    start(folder, name="other", seed=2)
    assert log(folder / "runs/again-001") == log(folder / "runs/tiny-001") != log(folder / "runs/other-001")


def test_killed_and_resumed_gives_the_same_log(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """SIGKILL at a random place of a longer run, twice, then compare with the run that was left alone."""
    settings = {"steps": 600, "val_every": 40, "checkpoint_every": 25, "name": "long"}
    start(tmp_path, **settings)
    expected = tmp_path / "runs" / "long-001"
    config = write_config(tmp_path, **settings, run=str(tmp_path / "killed"))
    raw = yaml.safe_load(config.read_text())
    del raw["train"]["name"]
    config.write_text(yaml.safe_dump(raw))
    run = tmp_path / "killed"
    seed = random.randrange(10**6)
    print("seed of the places:", seed)
    draw = random.Random(seed)
    places = sorted(draw.sample(range(30, 450), 2))
    kill_after(command("train", config), run, places[0])
    assert not (run / "summary.json").exists()
    kill_after(command("train", "--resume", run), run, places[1])
    resume(run, quiet=True)
    assert log(run) == log(expected)
    assert (run / "samples.txt").read_bytes() == (expected / "samples.txt").read_bytes()
    assert (run / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def kill_after(arguments: list[str], run: Path, step: int) -> None:
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while last_step(run / "metrics.csv") < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1].decode()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert last_step(run / "metrics.csv") >= step


def last_step(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
        return int(lines[-1].split(",")[0])
    except (OSError, IndexError, ValueError):
        return 0


@pytest.mark.parametrize("stop", [1, 10, 14, 25, 45])
def test_stopped_after_any_step_and_resumed(
    stop: int, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted on a step with and without a validation, a checkpoint and a row of the log."""
    from variform.train import callbacks, fit

    plain = callbacks.Recorder.on_train_batch_end

    def asks(self: Any, trainer: Any, *rest: Any) -> None:
        plain(self, trainer, *rest)
        if trainer.global_step == stop:
            trainer.callbacks[-1].stop = True

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Recorder, "on_train_batch_end", asks)
        with pytest.raises(fit.Interrupted, match=rf"after step {stop} of 50.*variform train --resume .*tiny-001"):
            start(tmp_path)
    run = tmp_path / "runs" / "tiny-001"
    assert RunFolder(run).saved_steps()[-1] == stop
    load_run(run)  # what is there can be used
    torch.manual_seed(99)
    resume(run, quiet=True)
    assert log(run) == log(whole[0] / "runs" / "tiny-001")


def test_killed_before_the_first_checkpoint(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    start(tmp_path)
    run = RunFolder(tmp_path / "runs" / "tiny-001")
    for step in run.saved_steps():
        run.checkpoint(step).unlink()
    run.summary.unlink()
    resume(run.path, quiet=True)
    assert log(run.path) == log(whole[0] / "runs" / "tiny-001")


@pytest.mark.parametrize("steps", [50, 47])
def test_killed_after_the_last_step(steps: int, tmp_path: Path) -> None:
    """The last validation belongs to the run even when no step is left."""
    summary = start(tmp_path, steps=steps)
    run = RunFolder(tmp_path / "runs" / "tiny-001")
    before = log(run.path)
    assert read_metrics(run.metrics)[-1]["val_loss"] == summary["val_loss"]
    run.summary.unlink()
    run.weights.unlink()
    resume(run.path, quiet=True)
    assert log(run.path) == before
    load_run(run.path)


def test_a_signal_ends_a_run_cleanly(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=3000, val_every=3000, checkpoint_every=3000)
    process = subprocess.Popen(command("train", config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "tiny-001"
    while last_step(run / "metrics.csv") < 9 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert err.startswith("error: interrupted after step ")
    assert f"variform train --resume {run}" in err
    assert f"run folder  {run}" in out
    step = RunFolder(run).saved_steps()[-1]
    assert 9 <= step < 3000
    assert (run / "loss.png").exists()


def test_prints_where_the_run_is_at_start_and_end(tmp_path: Path) -> None:
    done = call("train", write_config(tmp_path, steps=12), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    run = str(tmp_path / "runs" / "tiny-001")
    lines = done.stdout.splitlines()
    assert lines[0] == f"run folder  {run}"
    assert f"run folder  {run}" in lines[-3:]
    assert any(line.startswith("step     10 | train ") and "| bigram " in line for line in lines)
    assert done.stderr == ""
