"""Positions counted in a step: over valid tokens, anew in each document."""

import pytest
import torch

import variform as vf
from variform.stack.lines import Step
from variform.stack.positions import CountPositions
from variform.stack.program import ProgramModel

VALID = torch.tensor([[False, True, True, False, True], [True, True, False, False, False]])
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1], [4, 4, 4, 4, 2]])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("valid", [[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]]),
        ("segments", [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]),
        ("both", [[0, 0, 0, 0, 1], [0, 1, 1, 1, 1]]),
    ],
)
def test_positions(given: str, expected: list[list[int]]) -> None:
    inputs = {"valid": (VALID,), "segments": (SEGMENTS,), "both": (VALID, SEGMENTS)}[given]
    assert CountPositions(given=given)(*inputs).tolist() == expected  # type: ignore[arg-type]


def program(given: str, *reads: str, shape: tuple[str, ...] = ("B", "L")) -> vf.Spec:
    step = Step.spec(op=CountPositions.spec(given=given), reads=reads)
    return vf.resolve(ProgramModel.spec(lines=[step], inputs={"valid": ("B", "L"), "other": shape}, strict=False))


def test_shapes() -> None:
    assert str(vf.build(program("both", "valid", "other")).table.rows[0].writes[0][1]) == "(B, L)"
    with pytest.raises(vf.ConfigError, match="counted from 2 streams, not 1"):
        program("both", "valid")
    with pytest.raises(vf.ConfigError, match=r"along \[B, L\], not \(B, L\) and \(B, M\)"):
        program("both", "valid", "other", shape=("B", "M"))
