import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dialects.configaformers.programs import feedforward
from variform.cli import main

PROGRAM = {
    "blocks": [
        {"config": [{"type": "embedding", "num_classes": 17, "output_dim": 8}], "repeat": 1},
        {"config": feedforward(8), "repeat": 2},
    ],
    "input_streams": {"x": ["B", "L_in"]},
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = []
    for name, repeat in (("a.yaml", 2), ("b.yaml", 3)):
        content = json.loads(json.dumps(PROGRAM))
        content["blocks"][1]["repeat"] = repeat
        content["blocks"][0]["config"][0]["input_name"] = "x"
        (tmp_path / name).write_text(yaml.safe_dump(content))
        paths.append(str(tmp_path / name))
    return paths[0], paths[1]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    out = capsys.readouterr()
    return status, out.out, out.err


def test_costs(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run(capsys, "describe", files[0])
    assert status == 0
    assert "2048*BSZ*L_in" in text  # two copies of two maps between 8 and 32 features
    _, answer, _ = run(capsys, "describe", files[0], "--at", "B=2", "L_in=5", "--json")
    data: Any = json.loads(answer)
    assert data["total"]["flops"] == {"expression": "2048*BSZ*L_in", "value": 20480}
    assert run(capsys, "describe", files[0], "--batch", "2", "--length", "5", "--costs", "--json")[1] == answer


def test_sizes_that_are_none(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, told in (
        (["--at", "B2"], "NAME=NUMBER"),
        (["--at", "B=2", "B=3"], "once each"),
        (["--at", "B=2"], "give a number for L_in"),
        (["--at", "B=2", "L_in=5", "--length", "5"], "not both"),
        (["--batch", "2"], "give --length too"),
    ):
        status, _, error = run(capsys, "describe", files[0], *wrong)
        assert status == 2
        assert told in error


def test_budgets(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--max-params", "10K", "--max-flops", "1M", "--max-memory", "1MiB", "--batch", "2", "--length", "5"]
    assert run(capsys, "check", files[0], *limits)[0] == 0
    status, _, error = run(capsys, "check", files[0], "--max-params", "1K")
    assert status == 2
    assert "more than max_params = 1,000" in error
    assert "Block #2, line" in error


def test_diff(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run(capsys, "diff", *files, "--no-costs")
    assert (status, text) == (0, "~ Block #2: 2 -> 3 copies\n")
    _, answer, _ = run(capsys, "diff", *files, "--json", "--at", "B=1", "L=3")
    (change,) = json.loads(answer)["changes"]
    assert change["flops"] == {"expression": "1024*BSZ*L_in", "value": 3072}
    assert run(capsys, "diff", *files, "--no-costs", "--at", "B=1")[0] == 2
