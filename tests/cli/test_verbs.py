"""The verbs that look at models, with text and with JSON."""

import json
from pathlib import Path

import pytest
import yaml

import variform as vf
from tests.train.runs import write_config
from variform.cli import main
from variform.core.registry import parts
from variform.core.schema import registry_schema
from variform.train.config import read_config
from variform.train.material import prepare

GPT = {"vocab_size": 65, "dim": 32, "depth": 2, "heads": 4, "max_seq_len": 16}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({"preset": "gpt", **GPT}))
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    status = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def test_check(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "check", model).startswith("ok")
    found = json.loads(answer(capsys, "check", model, "depth=3", "--batch", "2", "--length", "5", "--json"))
    assert found["ok"] is True
    assert vf.from_dict(found["spec"]) == vf.resolve(vf.models.gpt(**{**GPT, "depth": 3}))
    assert found["params"] == sum(p.numel() for p in vf.build(vf.models.gpt(**{**GPT, "depth": 3})).parameters())


def test_check_of_a_training_config_looks_at_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert answer(capsys, "check", config).startswith("ok")
    assert main(["check", str(config), "data.text=none.txt"]) == 2
    assert "no such text file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_describe(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = vf.models.gpt(**GPT)
    expected = vf.describe(spec, batch=3, length=7)
    assert answer(capsys, "describe", model, "--batch", "3", "--length", "7").rstrip("\n") == str(expected).rstrip("\n")
    found = json.loads(answer(capsys, "describe", model, "--batch=3", "--length=7", "--json"))
    assert found == json.loads(json.dumps(expected.to_json()))


def test_describe_takes_overrides_anywhere_and_the_training_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    found = json.loads(answer(capsys, "describe", config, "model.dim=24", "--json", "model.depth=1"))
    assert found["length"] == 17
    vocab_size = len(prepare(read_config(config)).vocabulary)
    sizes = {"vocab_size": vocab_size, "dim": 24, "depth": 1, "heads": 2, "max_seq_len": 24}
    assert found["params"] == sum(p.numel() for p in vf.build(vf.models.gpt(**sizes)).parameters())


def test_explain(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "explain", model, "--length", "8")
    assert "sdpa" in text
    found = json.loads(answer(capsys, "explain", model, "--length", "8", "--decode", "--json"))
    assert found["decode"] is True
    assert found["training"] is False


def test_parts(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "parts")
    for kind, name in parts():
        assert kind in text.splitlines()
        assert any(line.startswith(f"  {name} ") for line in text.splitlines())
    found = json.loads(answer(capsys, "parts", "--kind", "norm", "--json"))
    assert {(info["kind"], info["name"]) for info in found} == set(parts("norm"))


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(answer(capsys, "schema")) == json.loads(json.dumps(registry_schema()))
    assert json.loads(answer(capsys, "schema", "--json")) == json.loads(json.dumps(registry_schema()))


def test_a_file_with_the_model_section_alone(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_text("model:\n" + "".join(f"  {line}\n" for line in model.read_text().splitlines()))
    plain = json.loads(answer(capsys, "describe", model, "--length=4", "--json", "model.dim=64"))
    assert plain["params"] == vf.describe(vf.models.gpt(**{**GPT, "dim": 64}), length=4).params
