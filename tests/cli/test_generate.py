"""`variform train` and `variform generate` from outside, as a user calls them."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.train.runs import call, command, content, write_config
from variform.cli import main
from variform.train.config import make_config
from variform.train.run import train

pytestmark = pytest.mark.timeout(300)  # they start processes, which takes long on a busy machine


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has no longest sequence."""
    folder = tmp_path_factory.mktemp("run")
    made = content(folder, steps=10)
    made["model"] = {"preset": "llama", "vocab_size": "from data", "dim": 16, "depth": 1, "heads": 2, "window": 5}
    train(make_config(made), quiet=True)
    return folder / "runs" / "tiny-001"


def test_text_and_json_say_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", str(run), "--prompt", "the king", "--tokens", "60", "--seed", "3"]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert main([*given, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert text == f"the king{data['text']}\n"
    assert len(data["text"]) == data["tokens"] == 60
    assert data["seed"] == 3


def test_seeds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text(*more: str) -> str:
        assert main(["generate", str(run), "--prompt", "the", "--tokens", "60", *more]) == 0
        return capsys.readouterr().out

    assert text("--seed=1") == text("--seed=1") != text("--seed=2")
    assert text() != text()
    assert text("--temperature=0") == text("--temperature=0", "--seed=5") == text("--top-k=1")


def test_text_appears_as_it_is_made(run: Path) -> None:
    arguments = command("generate", run, "--prompt", "the", "--tokens", "100000")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(13).startswith(b"the")
    assert process.poll() is None  # it is still writing
    process.stdout.close()
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.returncode == 0  # a reader that has seen enough is no error
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_train_with_json_leaves_stdout_to_the_summary(tmp_path: Path) -> None:
    done = call("train", write_config(tmp_path), "train.steps=10", "--json", "model.dim=8")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["steps"] == 10
    assert done.stderr == ""
    assert (tmp_path / "runs" / "tiny-001" / "summary.json").exists()
