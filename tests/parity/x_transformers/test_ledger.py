"""The page of features says what the option sets say and what is measured now."""

from __future__ import annotations

import pytest

from tests.parity.x_transformers import ledger
from tests.parity.x_transformers.option_set import OptionSet

WRITE = "write it anew: python -m tests.parity.x_transformers.ledger"
SETS = ledger.featured()


def lines() -> list[list[str]]:
    """The cells of the page's table."""
    text = ledger.PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [row.removeprefix("| ").removesuffix(" |").split(" | ") for row in rows[1:]]


def test_every_feature_has_a_line() -> None:
    assert [tuple(cells[:4]) for cells in lines()] == [ledger.fixed(one) for one in SETS], WRITE


def test_there_are_enough_option_sets() -> None:
    assert len(ledger.all_sets()) >= 150


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "cells"), list(zip(SETS, lines(), strict=False)), ids=lambda one: getattr(one, "name", "")
)
def test_lines_say_what_is_measured(one: OptionSet, cells: list[str]) -> None:
    difference, *rest = ledger.measured(one)
    assert cells[5:] == rest, WRITE
    try:
        bound = float(cells[4])
    except ValueError:
        assert cells[4] == difference, WRITE
    else:
        assert float(difference) <= max(100 * bound, 1e-12), WRITE
