"""Standalone files of programs: shared lines, published streams, and reasons with their place."""

from pathlib import Path
from typing import Any

import pytest
import torch

import variform as vf
from tests.export.test_standins import standalone
from variform.dialects.configaformers import program_spec
from variform.export import to_source

ROOT = Path(__file__).parents[2]
LINEAR: dict[str, Any] = {"part": "step", "op": {"part": "op/linear", "dim": 16}}
NORM: dict[str, Any] = {"part": "step", "op": "rms_norm"}


def program(lines: list[Any], **options: Any) -> vf.Spec:
    fields = {"part": "model/program", "lines": lines, "inputs": {"x": ["B", "L", 16]}, "outputs": ["x"]}
    found: vf.Spec = vf.from_dict({**fields, **options})
    return found


def block(*lines: Any, label: str = "both") -> dict[str, Any]:
    return {"part": "block", "lines": list(lines), "label": label}


def shared(line: dict[str, Any]) -> vf.Shared:
    return vf.Shared("core", vf.from_dict(line))


def check(spec: vf.Spec, parameters: int) -> Any:
    model = vf.build(spec).eval()
    file, x = standalone(model), torch.randn(3, 7, 16)
    with torch.no_grad():
        for name, output in model({"x": x}).items():
            assert torch.equal(file({"x": x})[name], output)
    assert len(list(file.parameters())) == len(list(model.parameters())) == parameters
    return file


@pytest.mark.parametrize("executor", ["plain", "checkpoint"])
def test_a_shared_block_is_one_set_of_modules(executor: str) -> None:
    core = shared(block(LINEAR, NORM))
    check(program([core, NORM, core, core], executor=executor), 4)


def test_a_shared_step_is_one_module() -> None:
    core = shared(LINEAR)
    file = check(program([core, NORM, core]), 3)
    assert len(list(file.children())) == 2
    check(program([block(core, NORM, core)]), 3)


@pytest.mark.parametrize(
    ("lines", "path", "reason"),
    [
        ([block(shared(LINEAR), NORM)] * 3, "lines.0", "in a block that is repeated"),
        ([shared(LINEAR), block(shared(LINEAR), NORM)], "lines.1.lines.0.op", "stands in several blocks"),
    ],
)
def test_lines_that_no_single_class_can_hold_are_refused(lines: list[Any], path: str, reason: str) -> None:
    with pytest.raises(vf.ConfigError, match=reason) as caught:
        to_source(program(lines))
    assert [problem.path for problem in caught.value.problems] == [path]


def test_streams_that_a_step_publishes() -> None:
    keep = {"part": "step", "op": {"part": "layer/publish", "stream": "keep"}, "into": ["x", "keep"]}
    add = {"part": "step", "op": {"part": "layer/add_stream", "stream": "keep"}, "reads": ["x", "keep"]}
    spec = program([LINEAR, keep, LINEAR, add], outputs=["x", "keep"])
    check(spec, 4)
    assert 'keep = published["keep"]  # (B, L, 16)' in to_source(spec)


def test_reasons_name_block_and_line() -> None:
    attention = {"part": "softmax", "backend": "reference"}
    mixer = {"part": "mixer/multi_head", "heads": 4, "dim": 16}
    named = {"part": "step", "op": {**mixer, "attention": attention}}
    masked = {"part": "step", "op": mixer, "reads": ["x", "mask"]}
    inputs = {"x": ["B", "L", 16], "mask": ["L", "L"]}
    with pytest.raises(vf.ConfigError) as caught:
        to_source(program([LINEAR, block(NORM, named, masked, label="Block A")], inputs=inputs))
    first, second = caught.value.problems
    assert (first.path, second.path) == ("lines.1.lines.1.op.attention", "lines.1.lines.2.op")
    assert "Block A, line 2 (multi_head): attention 'softmax': the backend 'reference'" in first.message
    assert "Block A, line 3 (multi_head): it reads mask" in second.message


def test_named_sizes_of_an_input_that_is_gone() -> None:
    modules = [
        {"type": "down_sample", "stride": 2},
        {"type": "linear", "output_dim": 32},
        {"type": "up_sample", "num_chunks": 2},
        {"type": "cut_stream", "start": 0, "end": "L", "cut_dim": 1},
    ]
    spec = program_spec(blocks=[{"config": modules, "repeat": 2}], input_shapes={"x": ["B", "L", 16]})
    check(spec, 4)
    assert "#" not in to_source(spec).split("class Program")[1].split("def __init__")[0]


def test_lines_that_a_condition_leaves_out() -> None:
    modules = [
        {"type": "norm"},
        {"type": "linear", "when": "i == 0"},
        {"type": "activation", "when": "i == 0"},
        {"type": "linear", "when": "i == 0"},
    ]
    check(program_spec(blocks=[{"config": modules, "repeat": 3}], input_shapes={"x": ["B", "L", 16]}), 10)


def test_the_example_program() -> None:
    model = vf.build(vf.load(ROOT / "examples" / "program.yaml")).eval()
    file, ids = standalone(model), torch.randint(65, (2, 33))
    with torch.no_grad():
        assert torch.equal(file({"ids": ids})["x"], model({"ids": ids})["x"])
