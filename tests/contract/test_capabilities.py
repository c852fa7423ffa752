"""The declared flags hold what is required: a strong promise cannot be met by declaring nothing."""

import re

import pytest

import variform as vf
from tests.contract.capabilities import FLAGS, ROWS, Row
from variform import testing
from variform.testing import report


def held(row: Row) -> list[type[vf.Part]]:
    """The registered parts that a row speaks of."""
    return [
        part for (kind, name), part in vf.parts().items() if f"{kind}/{name}" in row.names or f"{kind}/*" in row.names
    ]


def first_result(check: str, part: type[vf.Part]) -> testing.Result:
    """What a check says to the first instance of a part; all of them are checked with the other parts."""
    return report.run(report.find(check), testing.cases(part)[0])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_declared_flags_include_what_is_required(row: Row) -> None:
    parts = held(row)
    if not parts:
        pytest.skip(f"pending: {row.title}; no part is registered as {', '.join(row.names)}")
    for part in parts:
        for flag in FLAGS:
            wanted = row.wants(flag)
            declared = getattr(part.can, flag)
            assert wanted in "o-" or declared == (wanted == "y"), f"{part.kind}/{part.name}: {flag} must be {wanted}"


@pytest.mark.parametrize("row", [row for row in ROWS if row.bfloat16 == "y"], ids=lambda row: row.title)
def test_bfloat16_works_where_it_is_required(row: Row) -> None:
    if not held(row):
        pytest.skip(f"pending: {row.title}")
    for part in held(row):
        result = first_result("precision", part)
        assert result.status == "passed", str(result)


@pytest.mark.parametrize("kind", ["attention", "mixer"])
def test_every_attention_and_mixer_has_a_row(kind: str) -> None:
    named = {name for row in ROWS for name in row.names}
    missing = [f"{kind}/{name}" for _, name in vf.parts(kind) if f"{kind}/{name}" not in named]
    assert not missing, "add a row, or the name to one: what must these parts be able to do?"


def test_the_table_is_well_formed() -> None:
    names = [name for row in ROWS for name in row.names]
    assert len(names) == len(set(names)), "a name stands in two rows"
    for row in ROWS:
        assert re.fullmatch(r"[yro-]{7}", row.cells), row.title
        assert all(re.fullmatch(r"\w+/(\w+|\*)", name) for name in row.names), row.title


@pytest.mark.parametrize("promise", ["key_padding", "packed", "attention_mask", "decode"])
def test_a_promise_of_a_registered_part_is_tested_not_skipped(promise: str) -> None:
    """Where a flag is required, the check behind it runs on the part; it is not passed over for some reason."""
    check = {"key_padding": "padding", "packed": "packed", "attention_mask": "mask", "decode": "cache"}[promise]
    for row in ROWS:
        for part in held(row):
            if row.wants(promise) == "y" and part.kind in ("attention", "mixer") and "cross" not in part.name:
                result = first_result(check, part)
                assert result.status == "passed", str(result)
