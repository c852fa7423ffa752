"""`variform lower`: any model printed or saved as a program."""

import json
from pathlib import Path

import pytest
import yaml

import variform as vf
from variform.cli import main
from variform.cli.configs import load
from variform.core.text import parse_yaml
from variform.dialects.configaformers.files import program_of
from variform.dialects.configaformers.write import as_program

LLAMA = {"vocab_size": 65, "dim": 32, "depth": 2, "heads": 4, "max_seq_len": 16}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({"preset": "llama", **LLAMA}))
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    status = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def test_a_model_is_printed_as_a_program(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = vf.models.llama(**LLAMA)
    assert program_of(parse_yaml(answer(capsys, "lower", model))) == as_program(spec).spec
    found = json.loads(answer(capsys, "lower", model, "--json", "--depth", "ops", "--streams", "valid"))
    assert program_of(found) == as_program(spec, depth="ops", streams=("valid",)).spec
    text = answer(capsys, "lower", model, "depth=3", "--sizes", "d=32")
    assert "dim: d" in text
    assert "repeat: 3" in text


def test_a_program_is_saved_and_used_as_any_config(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "program.yaml"
    assert answer(capsys, "lower", model, "--out", target) == f"written: {target}\n"
    assert load(target) == as_program(vf.models.llama(**LLAMA)).spec
    assert program_of(parse_yaml(answer(capsys, "lower", target))) == load(target)
    assert answer(capsys, "check", target).startswith("ok")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--streams", "vlaid"], "did you mean 'valid'"),
        (["--sizes", "L=32"], "cannot name a size"),
        (["--depth", "all"], "invalid choice"),
        (["--out", "program.txt"], "cannot tell the format"),
    ],
)
def test_mistakes(arguments: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lower", str(model), *arguments]) == 2
    assert message in capsys.readouterr().err
