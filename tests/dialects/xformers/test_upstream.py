"""The dialect computes what upstream 0.0.16 computed, on weights that depend on their names alone."""

import json
from typing import Any

import pytest
import torch

from tests.dialects.xformers.cases import recorded
from tests.dialects.xformers.record_upstream import FILE

EXPECTED: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
CASES = recorded("variform.dialects.xformers")


def test_every_case_was_recorded() -> None:
    assert set(CASES) == set(EXPECTED)


@pytest.mark.parametrize("name", CASES)
def test_equals_upstream(name: str) -> None:
    y = CASES[name]()
    expected = torch.tensor(EXPECTED[name]["values"], dtype=torch.float64).view(EXPECTED[name]["shape"])
    # Upstream kept sines, and masks made of booleans, in float32.
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 if "sine" in name or "rotary" in name else 1e-10)
