"""Programs in files, and the commands that take them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import variform as vf
from variform.cli import main
from variform.cli.configs import load, load_with_length
from variform.core.formats import reader_of
from variform.dialects.configaformers import ConfigaformersError, load_program, program_of, program_spec

PROGRAM: dict[str, Any] = {
    "sizes": {"d": 16, "depth": 2},
    "input_shapes": {"emb_ids": ["B", "L"]},
    "blocks": [
        {"config": [{"type": "embedding", "num_classes": 11, "output_dim": "d", "share": "tokens"}], "repeat": 1},
        {
            "config": [
                {"type": "linear", "output_dim": "4*d"},
                {"type": "activation"},
                {"type": "linear", "output_dim": "d", "when": "i % 2 == 0"},
                {"type": "op/linear", "out": "d", "bias": False, "when": "i % 2 == 1"},
            ],
            "repeat": "depth",
        },
        {"config": [{"type": "unembed", "embedding": "tokens"}], "repeat": 1},
    ],
}


@pytest.fixture(params=["yaml", "json"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / f"program.{request.param}"
    file.write_text(yaml.safe_dump(PROGRAM) if request.param == "yaml" else json.dumps(PROGRAM))
    return file


def test_a_file_is_the_program(path: Path) -> None:
    before = copy.deepcopy(PROGRAM)
    expected = program_spec(PROGRAM["blocks"], sizes=PROGRAM["sizes"], input_shapes=PROGRAM["input_shapes"])
    assert load_program(path) == expected
    assert program_of(PROGRAM) == expected
    assert load(path) == expected
    assert load_with_length(path) == (expected, None)
    assert before == PROGRAM


def test_overrides_reach_sizes_blocks_and_the_program_itself() -> None:
    changed = copy.deepcopy(PROGRAM)
    changed["sizes"]["d"] = 24
    changed["blocks"][1]["config"][0]["init_bias"] = 0.5
    changes = ["sizes.d=24", "blocks[1].config[0].init_bias=0.5", "blocks.-1.repeat=1"]
    assert program_of(PROGRAM, changes) == program_of(changed)
    assert program_of(PROGRAM, ["executor=checkpoint"]) == program_of({**PROGRAM, "executor": "checkpoint"})
    assert program_of(PROGRAM, ["executor=checkpoint"])["executor"] == "checkpoint"


def test_wrong_overrides_and_keys_are_told_at_once() -> None:
    changes = [
        "sizes.dd=24",
        "blocks.9.repeat=2",
        "blocks.1.confg.0.type=norm",
        "blocks.0.config.0.type.a=3",
        "d=3",
        "=",
    ]
    with pytest.raises(ConfigaformersError) as caught:
        program_of({**PROGRAM, "szes": {}}, changes)
    text = str(caught.value)
    assert "szes: a program has no such key" in text
    assert "did you mean 'sizes'" in text
    assert "no 'dd' here" in text
    assert "no item '9' in a list of 3" in text
    assert "did you mean 'config'?" in text
    assert "nothing below 'type'" in text
    assert "no 'd' here" in text
    assert "written path=value" in text
    with pytest.raises(ConfigaformersError, match="'blocks'"):
        program_of({"part": "program"})
    with pytest.raises(vf.ConfigError, match="executor"):
        program_of(PROGRAM, ["executor=plane"])


def test_what_is_a_program() -> None:
    assert reader_of(PROGRAM) is program_of
    for other in (3, [], {}, {"part": "gpt", "blocks": []}, {"preset": "gpt"}, {"model": PROGRAM}):
        assert reader_of(other) is None


def test_the_library_takes_programs_wherever_it_takes_configs(path: Path) -> None:
    expected = program_of(PROGRAM)
    assert vf.from_dict(PROGRAM) == vf.load(path) == vf.resolve(PROGRAM) == expected
    assert vf.load(path, ["sizes.d=24"]) == program_of(PROGRAM, ["sizes.d=24"])
    assert vf.check(path).ok
    assert vf.check(PROGRAM).spec == expected
    assert vf.build(PROGRAM).spec == expected
    assert vf.describe(path, batch=1, length=4).params == sum(p.numel() for p in vf.build(path).parameters())
    (problem,) = vf.check({**PROGRAM, "sizes": {}}).problems[:1]
    assert "'d' is not known" in problem.message


@pytest.mark.parametrize("verb", ["check", "describe", "explain"])
def test_verbs_take_programs(verb: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(path), "sizes.depth=3", "--length", "5", "--batch", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    if verb == "check":
        assert found["ok"] is True
        assert vf.from_dict(found["spec"]) == program_of(PROGRAM, ["sizes.depth=3"])
    assert main([verb, str(path), "sizes.d=dd", "--length", "5"]) == 2
    assert "sizes.d: 'dd' is not known" in capsys.readouterr().err


def test_other_files_are_read_as_ever(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    gpt = {"preset": "gpt", "vocab_size": 11, "dim": 16, "depth": 2, "heads": 2, "max_seq_len": 8}
    file.write_text(yaml.safe_dump(gpt))
    assert load(file, ["depth=3"]) == vf.from_dict({**gpt, "depth": 3})
