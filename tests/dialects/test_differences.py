"""Each difference that the documentation names has the test it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "differences.md"
FOLDER = re.compile(r"^Tests are in `([\w/.-]+)`", re.MULTILINE)
NAMED = re.compile(r"`([\w/.]+\.py)::(\w+)`")


def sections() -> list[tuple[str, str]]:
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(("dialect", "text"), sections(), ids=lambda value: value.split("\n")[0])
def test_every_named_test_is_there(dialect: str, text: str) -> None:
    match = FOLDER.search(text)
    assert match is not None, f"{dialect}: say where its tests are: Tests are in `folder`."
    named = NAMED.findall(text)
    assert named
    for file, test in named:
        source = (ROOT / match[1] / file).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{dialect}: {file} has no {test}"


def test_every_row_names_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    missing = [row for row in rows if not NAMED.search(row) and not row.startswith("| feature")]
    assert not missing


@pytest.mark.parametrize(("dialect", "text"), sections(), ids=lambda value: value.split("\n")[0])
def test_no_row_stands_twice(dialect: str, text: str) -> None:
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| feature")]
    assert sorted({row for row in rows if rows.count(row) > 1}) == []
