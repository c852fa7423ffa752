from typing import Any

import variform as vf
from variform.parts.op.tokenwise import CopyOp, LinearOp
from variform.stack.lines import Block, Step
from variform.stack.program import ProgramModel


def step(reads: str = "x", into: str = "x", op: Any = None) -> vf.Spec:
    return Step.spec(op=op or LinearOp.spec(), reads=reads.split(), into=into.split())


def notes(*lines: vf.Spec, **more: Any) -> list[tuple[str, str]]:
    inputs = more.pop("inputs", {"x": ["B", "L", 8]})
    model = vf.build(ProgramModel.spec(lines=lines, inputs=inputs, strict=False, **more))
    return [(problem.path, problem.message) for problem in model.diagnostics]


def test_what_is_read_is_not_told() -> None:
    assert notes(step("x", "y"), step("y")) == []


def test_inputs_and_writes_without_a_reader() -> None:
    found = notes(step("x", "y"), step(), inputs={"x": ["B", "L", 8], "m": ["B"]})
    assert found == [
        ("inputs.m", "the input 'm' is never read"),
        ("lines.0.into", "line 1 (linear): writes 'y', which nothing reads"),
    ]


def test_an_input_that_is_overwritten_unread() -> None:
    (found,) = notes(step("x", "m"), step("m"), inputs={"x": ["B", "L", 8], "m": ["B"]})
    assert found == ("inputs.m", "the input 'm' is never read")


def test_copies_of_a_block_are_told_once() -> None:
    block = Block.spec(lines=[step("x", "y"), step()], label="layer")
    (found,) = notes(block, block, block)
    assert found[0] == "lines.0.lines.0.into"
    assert "layer, line 1 (linear): writes 'y', which layer, repeat 2, line 1 (linear) overwrites" in found[1]


def test_unlabelled_blocks_are_told_one_by_one() -> None:
    found = notes(Block.spec(lines=[step("x", "y"), step()]), Block.spec(lines=[step("x", "z"), step()]))
    assert [path for path, _ in found] == ["lines.0.lines.0.into", "lines.1.lines.0.into"]


def test_outputs_that_nobody_asked_for_are_told() -> None:
    lines = [step("x", "y"), step("x", "z", CopyOp.spec())]
    assert notes(*lines, outputs=["y", "z"]) == []
    assert [path for path, _ in notes(*lines, outputs=["y", "z"], unasked=["y"])] == ["lines.0.into"]


def test_a_check_reports_them_without_failing() -> None:
    spec = ProgramModel.spec(lines=[step("x", "y"), step()], inputs={"x": ["B", "L", 8]}, strict=False)
    report = vf.check(spec)
    assert report.ok
    assert [note.path for note in report.notes] == ["lines.0.into"]
    assert "warning: line 1 (linear): writes 'y', which nothing reads" in str(report)
    assert vf.check(spec.replace(strict=True)).notes == ()  # they are problems there
