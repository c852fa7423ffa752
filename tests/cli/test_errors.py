"""Bad input: one clear error on stderr, status 2, no traceback, JSON where it was asked for, nothing lost."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.train.runs import call, content, write_config
from variform.cli import main
from variform.train.config import make_config
from variform.train.folder import RunFolder
from variform.train.run import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    train(make_config(content(folder, steps=10)), quiet=True)
    return folder / "runs" / "tiny-001"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "tiny-001"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


Error = Callable[..., str]


@pytest.fixture
def error(capsys: pytest.CaptureFixture[str]) -> Error:
    """Runs a command that must fail; returns its message, the same as text and as JSON."""

    def fails(*arguments: str | Path) -> str:
        given = [*map(str, arguments)]
        assert main(given) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert "Traceback" not in text
        assert main([*given, "--json"]) == 2
        as_json = json.loads(capsys.readouterr().err)["error"]
        assert text == f"error: {as_json['message']}\n"
        assert as_json["problems"]
        assert all({"path", "message"} <= set(problem) for problem in as_json["problems"])
        return text

    return fails


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no verb was given"),
        (["trian"], "there is no verb 'trian'; did you mean 'train'?"),
        (["parts", "--knd", "norm"], "does not know '--knd'; did you mean '--kind'?"),
        (["parts", "--kind", "nrom"], "there is no kind 'nrom'; did you mean 'norm'?"),
        (["parts", "surplus"], "does not know 'surplus'"),
        (["describe"], "the following arguments are required: CONFIG"),
        (["describe", "none.yaml"], "there is no file 'none.yaml'"),
        (["train"], "give a training config, or --resume RUN"),
        (["train", "--resume", "nowhere"], "there is no run folder 'nowhere'"),
        (["train", "a.yaml", "--resume", "b"], "a resumed run keeps its config"),
        (["generate", "nowhere", "--prompt", "x"], "there is no run folder 'nowhere'"),
        (["generate", "nowhere"], "the following arguments are required: --prompt"),
        (["benchmark"], "there is no verb 'benchmark'; did you mean 'bench'?"),
    ],
)
def test_command_lines(arguments: list[str], message: str, error: Error) -> None:
    assert message in error(*arguments)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.heads=3", "model.stacks.0.layers.0.sublayers.0.body.heads: must divide dim = 16"),
        ("model.dept=3", "did you mean 'depth'?"),
        ("model.preset=gtp", "model.preset: there is no preset 'gtp'; did you mean 'gpt'?"),
        ("model.depth=two", "model.depth: input should be a valid integer"),
        ("model.dropout=1.5", "dropout: input should be less than 1"),
        ("model.stacks.0.layers.9.sublayers=1", "there is no item"),
        ("data.context=25", "model.max_seq_len: shorter than the training windows (got 24)"),
        ("data.context=900", "shorter"),
        ("data.text=none.txt", "data.text: there is no such text file"),
        ("train.precision=bf16", "did you mean 'bfloat16'?"),
        ("train.warmup=999", "train.warmup: longer than the training"),
        ("train.samples.prompt=Ω", "characters outside the model's vocabulary: 'Ω'"),
        ("train.devices=4", "data.batch_size: must divide evenly over 4 processes"),
        ("train.out=/dev/null/runs", "train.out: cannot make a run folder there"),
        ("notasection.x=3", "SECTION.FIELD=VALUE"),
    ],
)
def test_training_configs(override: str, message: str, config: Path, error: Error, tmp_path: Path) -> None:
    assert message in error("train", config, override)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_hardware_that_is_not_there(config: Path, error: Error) -> None:
    assert "train.accelerator: there is no CUDA device (got 'cuda'); auto, or cpu" in error(
        "train", config, "train.accelerator=cuda"
    )


@pytest.mark.parametrize("verb", ["check", "describe", "explain", "train"])
@pytest.mark.parametrize(
    "damage", ["a: [1", "just text", "\t- x: {", "preset: gpt\npreset: bert", "part: !!python/none x"]
)
def test_damaged_configs(verb: str, damage: str, tmp_path: Path, error: Error) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(damage)
    error(verb, path)


def test_a_config_in_another_encoding(tmp_path: Path, error: Error) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"model: \xff\xfe")
    assert "bad.yaml" in error("check", path)


def test_a_length_over_the_limit(config: Path, error: Error) -> None:
    assert "24" in error("describe", config, "--length", "25")
    assert "24" in error("check", config, "--batch", "1", "--length", "25")


@pytest.mark.parametrize("option", ["--batch=0", "--length=-3", "--batch=x"])
def test_impossible_sizes(option: str, config: Path, error: Error) -> None:
    error("describe", config, option)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "tΩhe~"], "characters outside the model's vocabulary: '~' 'Ω'"),
        (["--prompt", ""], "--prompt: the prompt is empty"),
        (["--prompt", "the", "--tokens", "23"], "max_seq_len is 24; ask for at most 22 new tokens"),
        (["--prompt", "the" * 9, "--tokens", "1"], "max_seq_len is 24; shorten the prompt"),
        (["--prompt", "the", "--tokens", "0"], "max_new_tokens"),
        (["--prompt", "the", "--tokens", "x"], "invalid int value: 'x'"),
        (["--prompt", "the", "--temperature=-1"], "temperature"),
        (["--prompt", "the", "--top-p", "2"], "top_p"),
        (["--prompt", "the", "--top-k", "0"], "top_k"),
        (["--prompt", "the", "--seed=-1"], "--seed: a seed is not negative"),
    ],
)
def test_generation(arguments: list[str], message: str, finished: Path, error: Error) -> None:
    assert message in error("generate", finished, "--tokens=9", *arguments)


def damage_weights(run: RunFolder) -> None:
    run.weights.write_bytes(run.weights.read_bytes()[:500])


def remove_weights(run: RunFolder) -> None:
    run.weights.unlink()


def damage_config(run: RunFolder) -> None:
    run.config.write_text("model: {part: [}")


def empty_config(run: RunFolder) -> None:
    run.config.write_text("")


def remove_config(run: RunFolder) -> None:
    run.config.unlink()


def damage_vocabulary(run: RunFolder) -> None:
    run.vocabulary.write_text("{}")


def another_vocabulary(run: RunFolder) -> None:
    run.vocabulary.write_text('{"kind": "characters", "characters": " abeht"}')


def another_model(run: RunFolder) -> None:
    made = yaml.safe_load(run.config.read_text())
    made["model"]["stacks"][0]["norm"] = None
    run.config.write_text(yaml.safe_dump(made))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "model.safetensors' is damaged or not a safetensors file"),
        (remove_weights, "has no weights yet; finish it: variform train --resume"),
        (damage_config, "config.yaml is not valid YAML"),
        (empty_config, "config.yaml' is damaged"),
        (remove_config, "is not a run folder: it has no config.yaml"),
        (damage_vocabulary, "vocabulary.json' is missing or damaged"),
        (another_vocabulary, "vocabulary.json' does not belong to this model"),
        (another_model, "stacks.0.norm.weight: left over: the model has no tensor of this name"),
    ],
)
def test_damaged_runs(damage: Callable[[RunFolder], None], message: str, run: Path, error: Error) -> None:
    damage(RunFolder(run))
    assert message in error("generate", run, "--prompt", "the", "--tokens=9")


def unfinished(run: Path) -> RunFolder:
    folder = RunFolder(run)
    folder.summary.unlink()
    folder.checkpoint(10).unlink()
    return folder


def test_resuming_a_complete_run(finished: Path, error: Error) -> None:
    assert "is complete: all 10 steps are done" in error("train", "--resume", finished)


def test_resuming_with_a_damaged_checkpoint(run: Path, error: Error) -> None:
    folder = unfinished(run)
    path = folder.checkpoint(5)
    path.write_bytes(path.read_bytes()[:1000])
    before = folder.metrics.read_bytes()
    assert f"the checkpoint '{path}' is damaged" in error("train", "--resume", run)
    assert folder.metrics.read_bytes() == before


class Evil:
    """What a hostile file would hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


def test_a_checkpoint_executes_nothing(
    run: Path, error: Error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = unfinished(run).checkpoint(5)
    torch.save({"global_step": 5, "callbacks": Evil()}, path)
    assert "is damaged" in error("train", "--resume", run)
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    assert "is damaged" in error("train", "--resume", run)
    assert not (tmp_path / "executed").exists()


def test_resuming_with_a_damaged_log(run: Path, error: Error) -> None:
    folder = unfinished(run)
    folder.metrics.write_bytes(folder.metrics.read_bytes()[:20])
    assert "metrics.csv' is damaged: the checkpoint was made when it had" in error("train", "--resume", run)


def test_resuming_with_another_text(run: Path, error: Error) -> None:
    folder = unfinished(run)
    made = yaml.safe_load(folder.config.read_text())
    other = run.parent / "other.txt"
    other.write_text(Path(made["data"]["text"]).read_text()[::-1])
    made["data"]["text"] = str(other)
    folder.config.write_text(yaml.safe_dump(made))
    assert "the text is not the one this run was started with" in error("train", "--resume", run)


def test_checkpoints_of_another_kind(run: Path, error: Error) -> None:
    folder = unfinished(run)
    made = yaml.safe_load(folder.config.read_text())
    made["train"]["strategy"] = "fsdp2"
    folder.config.write_text(yaml.safe_dump(made))
    assert "checkpoints are of the other kind" in error("train", "--resume", run)


def test_a_run_folder_is_never_overwritten(finished: Path, tmp_path: Path, error: Error) -> None:
    made = content(tmp_path, run=str(finished))
    del made["train"]["name"]
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(made))
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert "train.run: the run folder is not empty" in error("train", path)
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_a_folder_without_permission(config: Path, tmp_path: Path, error: Error) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "train.out: cannot make a run folder there: Permission denied" in error(
        "train", config, f"train.out={tmp_path / 'closed' / 'runs'}"
    )


def test_missing_packages_are_named(config: Path) -> None:
    """Training without Lightning: a message, and nothing is left behind."""
    folder = config.parent / "shadow" / "lightning"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ModuleNotFoundError('no', name='lightning')")
    path = os.pathsep.join([str(folder.parent), os.environ.get("PYTHONPATH", "")])
    done = call("train", config, PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: training needs the package lightning, which is not installed; pip install 'variform[train]'\n"
    )
    assert not (config.parent / "runs").exists()
