"""The commands: a run, its results and its checkpoint; processes; batches here and on SLURM; tables; mistakes."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import variform
from tests.dialects.xformers.lra.settings import TASK, write
from variform.dialects.xformers.benchmarks import LRA
from variform.dialects.xformers.benchmarks.LRA import batch_fetch_results, batch_submit, run_tasks
from variform.dialects.xformers.benchmarks.LRA.config import TASKS, read_settings
from variform.dialects.xformers.benchmarks.LRA.model import Task
from variform.dialects.xformers.benchmarks.LRA.rows import Batch
from variform.dialects.xformers.benchmarks.LRA.sources import load
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY

MODULE = "variform.dialects.xformers.benchmarks.LRA"
OWN = """
from variform.dialects.xformers.components.attention import AttentionConfig, Attention, register_attention

@register_attention("own_{name}", AttentionConfig)
class Own(Attention):
    def __init__(self, dropout: float = 0.0, **rest):
        super().__init__()
        self.supports_key_padding_mask = True

    def forward(self, q, k, v, att_mask=None, key_padding_mask=None):
        return v
"""


def results(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / run_tasks.RESULTS).read_text(encoding="utf-8"))
    return found


def run(folder: Path, *options: str, attention: str = "scaled_dot_product", task: str = "listops") -> int:
    shared = ["--config", str(folder / "config.json"), "--checkpoint_dir", str(folder / "ck")]
    return run_tasks.main(["--attention", attention, "--task", task, *shared, *options])


def start(folder: Path, program: str, *options: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(variform.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"{MODULE}.{program}", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_a_run_learns_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = {"batch_size": 32, "learning_rate": 5e-3, "warmup": 20, "num_train_steps": 120, "eval_frequency": 40}
    write(tmp_path, dataset__train=None, dataset__dev=137, dataset__test=None, training=training)
    assert run(tmp_path, task="image") == 0
    found = results(tmp_path / "ck", "image__scaled_dot_product")
    assert found["test_accuracy"] > 0.25 > found["baselines"]["majority"]
    assert [entry["step"] for entry in found["validation"]] == [40, 80, 120]
    assert (found["steps"], found["examples"], found["padding"]) == (120, [1300, 137, 360], "none")
    assert found["settings"]["training"]["learning_rate"] == 5e-3
    printed = capsys.readouterr().out
    assert f"image, scaled_dot_product: test accuracy {found['test_accuracy']:.1%} after 120 steps" in printed
    assert "the commonest answer:" in printed
    assert "root operator" not in printed


def test_baselines_stand_beside_the_accuracy_of_listops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert run(tmp_path, attention="fourier_mix") == 0
    found, printed = results(tmp_path / "ck", "listops__fourier_mix"), capsys.readouterr().out
    assert f"the commonest answer for the root operator: {found['baselines']['root_operator']:.1%}" in printed
    assert "cannot leave padding out" in printed


def test_an_earlier_checkpoint_is_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert run(tmp_path) == 0
    first = results(tmp_path / "ck", "listops__scaled_dot_product")
    saved = torch.load(first["checkpoint"], weights_only=True)["state_dict"]
    assert any(name.startswith("model.encoder.encoders.0.wrap_att") for name in saved)
    again = ["--skip_train", "--checkpoint_path", first["checkpoint"], "--checkpoint_dir", str(tmp_path / "again")]
    assert run(tmp_path, *again) == 0
    found = results(tmp_path / "again", "listops__scaled_dot_product")
    assert (found["test_loss"], found["steps"]) == (pytest.approx(first["test_loss"]), 0)
    assert run(tmp_path, *again, attention="linformer") == 2
    assert "the checkpoint is not of this model" in capsys.readouterr().err


def test_a_seed_repeats_a_run(tmp_path: Path) -> None:
    losses = []
    for seed in (0, 0, 1):
        write(tmp_path, training__seed=seed)
        assert run(tmp_path) == 0
        losses.append(results(tmp_path / "ck", "listops__scaled_dot_product")["test_loss"])
    assert losses[0] == losses[1] != losses[2]


def test_training_examples_are_shuffled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    step = Task.training_step

    def kept(self: Task, batch: Batch, index: int) -> torch.Tensor:
        seen.append(batch.labels)
        return step(self, batch, index)

    monkeypatch.setattr(Task, "training_step", kept)
    training = {**TASK["training"], "num_train_steps": 16}
    file = write(tmp_path, training=training)
    labels = load(read_settings(file, "listops"))[0].labels.tolist()
    assert run(tmp_path) == 0
    first, second = (torch.cat(seen[i : i + 8]).tolist() for i in (0, 8))
    assert sorted(first) == sorted(second) == sorted(labels)
    assert len({tuple(order) for order in (first, second, labels)}) == 3


def test_accumulated_parts_make_the_same_batch(tmp_path: Path) -> None:
    losses = []
    for parts in (1, 4):
        write(tmp_path, training__gradient_accumulation=parts)
        assert run(tmp_path, task="image", attention="linear") == 0
        found = results(tmp_path / "ck", "image__linear")
        losses.append(found["test_loss"])
        assert (found["steps"], [entry["step"] for entry in found["validation"]]) == (4, [2, 4])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_half_precision_and_few_validation_batches(tmp_path: Path) -> None:
    write(tmp_path, training__mixed_precision=True, training__num_eval_steps=1)
    assert run(tmp_path, "--debug") == 0
    found = results(tmp_path / "ck", "listops__scaled_dot_product")["validation"]
    assert all(8 * entry["accuracy"] == int(8 * entry["accuracy"]) for entry in found), "8 of the 9 examples"


def test_an_attention_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(tmp_path)
    try:
        for name, options in (("lra_first", ()), ("lra_second", ("-p", "lra_second"))):
            Path(f"{name}.py").write_text(OWN.format(name=name), encoding="utf-8")
            assert run(tmp_path, *options, attention=f"own_{name}") == 0
            assert results(tmp_path / "ck", f"listops__own_{name}")["padding"] == "masked"
        assert "own_lra_first is registered in lra_first.py" in capsys.readouterr().err
    finally:
        for name in ("lra_first", "lra_second"):
            ATTENTION_REGISTRY.remove(f"own_{name}")
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attention", "nystrm"], "did you mean 'nystrom'"),
        (["--world_size", "3"], "the batch does not divide by 3 processes"),
        (["--world_size", "0"], "at least one process"),
        (["--sweep_parameters", '{"training:batch_size": 128}'], "only 64 examples to learn from"),
        (["--skip_train", "--checkpoint_path", "none.ckpt"], "there is no such file"),
        (["--preset", "none"], "no such preset"),
        (["-p", "no_such_module"], "no module 'no_such_module'"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write(tmp_path)
    assert run(tmp_path, *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--skip_train"], ["--checkpoint_path", "x"], ["--skip_train", "False"], ["--tb_dir", "x"], ["--task", "x"]],
)
def test_flags_are_honoured_or_refused(tmp_path: Path, options: list[str]) -> None:
    write(tmp_path)
    with pytest.raises(SystemExit) as error:
        run(tmp_path, *options)
    assert error.value.code == 2


def test_without_lightning_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        importlib.reload(LRA)


@pytest.mark.parametrize("program", [run_tasks, batch_submit, batch_fetch_results])
def test_help_is_readable(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--help"])
    printed = capsys.readouterr().out
    assert (program.__doc__ or "").splitlines()[0][:40] in printed
    assert len(printed.splitlines()) < 60


@pytest.mark.slow
def test_two_processes_judge_as_one(tmp_path: Path) -> None:
    write(
        tmp_path,
        model__xformer=[
            {**json.loads(write(tmp_path).read_text())["image"]["model"]["xformer"][0], "reversible": True}
        ],
    )
    options = ["--attention", "local", "--task", "image", "--config", "config.json", "--checkpoint_dir", "two"]
    assert "after 4 steps" in start(tmp_path, "run_tasks", *options, "--world_size", "2")
    two = results(tmp_path / "two", "image__local")
    assert run(tmp_path, "--skip_train", "--checkpoint_path", two["checkpoint"], task="image", attention="local") == 0
    one = results(tmp_path / "ck", "image__local")
    assert two["world_size"] == 2
    assert one["test_accuracy"] == two["test_accuracy"]
    assert one["test_loss"] == pytest.approx(two["test_loss"], rel=1e-5)


def submit(folder: Path, *options: str) -> int:
    return batch_submit.main(["-c", str(folder / "config.json"), "-ck", str(folder / "ck"), *options])


def test_jobs_are_those_whose_data_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    (tmp_path / "aclImdb").mkdir()
    arguments = ["-c", str(tmp_path / "config.json"), "-ck", "ck", "-a", "local", "linear", "--data", str(tmp_path)]
    jobs = batch_submit.commands(batch_submit.make_parser().parse_args([*arguments, "--world_size", "2", "-p", "json"]))
    assert list(jobs) == [f"{task}__{name}" for name in ("local", "linear") for task in ("listops", "image", "text")]
    options = run_tasks.make_parser().parse_args(jobs["text__linear"][3:])
    assert (options.attention, options.task, options.world_size, options.module) == ("linear", "text", 2, ["json"])
    printed = capsys.readouterr().out
    assert [f"left out: {task}:" in printed for task in TASKS] == [
        task not in ("listops", "image", "text") for task in TASKS
    ]


@pytest.mark.slow
def test_a_batch_on_this_machine(tmp_path: Path) -> None:
    write(tmp_path)
    printed = start(tmp_path, "batch_submit", "-c", "config.json", "-ck", "ck", "-a", "linear", "--cluster", "local")
    assert "submitted: listops__linear as job" in printed
    logs = printed.split("logs in ")[1].splitlines()[0]
    assert "listops, linear: test accuracy" in Path(logs).read_text(encoding="utf-8")
    assert "| attention " in printed
    assert start(tmp_path, "batch_fetch_results", "-ck", "ck").strip() in printed


@pytest.mark.slow
def test_a_job_that_fails_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, model__common__vocab_size=3)
    assert submit(tmp_path, "-a", "linear", "-t", "listops", "--cluster", "local") == 2
    assert "listops.model.common.vocab_size" in capsys.readouterr().out


def test_a_batch_on_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in (("srun", "true"), ("sbatch", "echo Submitted batch job 41")):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    write(tmp_path)
    more = ["--partition", "big", "--timeout", "30", "--world_size", "2"]
    assert submit(tmp_path, "-a", "local", "-t", "image", *more) == 0
    printed = capsys.readouterr().out
    assert "submitted: image__local as job 41 (slurm)" in printed
    assert f"batch_fetch_results -ck {tmp_path / 'ck'}" in printed
    file = next((tmp_path / "ck" / "jobs").glob("*.sh"))
    lines = set(file.read_text(encoding="utf-8").splitlines())
    asked = {"job-name=image__local", "partition=big", "time=30", "ntasks-per-node=2", "gpus-per-node=2", "nodes=1"}
    assert {f"#SBATCH --{option}" for option in asked} <= lines


def test_mistakes_of_a_batch_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    for options, message in (
        (["-a", "nystrm"], "did you mean 'nystrom'"),
        (["-a", "local", "-t", "retrieval"], "there is no folder"),
        (["-a", "local", "--cluster", "local", "--partition", "big"], "there is no SLURM here"),
        (["-a", "local", "--preset", "none"], "no such preset"),
    ):
        assert submit(tmp_path, *options) == 2
        assert message in capsys.readouterr().err


def test_a_table_of_what_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for attention, task, accuracy, roots in (
        ("local", "listops", 0.4, {"root_operator": 0.37}),
        ("local", "image", 0.5, {}),
        ("linear", "image", 0.25, {}),
    ):
        place = tmp_path / attention / f"{task}__{attention}"  # upstream's folders are one level deeper
        place.mkdir(parents=True)
        content = {
            "attention": attention,
            "task": task,
            "test_accuracy": accuracy,
            "baselines": {"majority": 0.1, **roots},
        }
        (place / run_tasks.RESULTS).write_text(json.dumps(content), encoding="utf-8")
    assert batch_fetch_results.main(["-ck", str(tmp_path)]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["attention", "listops", "image", "mean"]
    assert rows[2:] == [
        ["linear", "", "25.0", ""],
        ["local", "40.0", "50.0", "45.0"],
        ["(commonest answer)", "10.0", "10.0", ""],
        ["(commonest for the root operator)", "37.0", "", ""],
    ]
    assert batch_fetch_results.main(["-ck", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert batch_fetch_results.main(["-ck", str(tmp_path / "none")]) == 2
    (tmp_path / run_tasks.RESULTS).write_text("{}", encoding="utf-8")
    assert batch_fetch_results.main(["-ck", str(tmp_path)]) == 2
