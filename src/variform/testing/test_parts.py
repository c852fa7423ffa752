"""The suite as tests over the registry: `pytest --pyargs variform.testing -p my_module -k my_part`.

A module named with `-p` is imported first, so the parts it registers are among those that are tested.
"""

from __future__ import annotations

import pytest

from variform.testing import Case, Check, all_samples, checks, report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each instance and check, named `kind/name-check`; those that take seconds are marked slow."""
    pairs = [(Case(sample), one) for sample in all_samples() for one in checks()]
    params = [pytest.param(case, one, id=f"{case.label}-{one.name}", marks=_marks(case, one)) for case, one in pairs]
    metafunc.parametrize(("case", "one"), params)


def _marks(case: Case, one: Check) -> list[pytest.MarkDecorator]:
    """Compiling takes a second each: beyond the models, further variants of a part are left to the slow run."""
    variant = one.name == "compile" and case.sample.variant not in ("", "plain") and case.part.kind != "model"
    return [pytest.mark.slow] if one.slow or variant else []


def test_part(case: Case, one: Check) -> None:
    """The part keeps this promise."""
    result = report.run(one, case)
    if result.status == "skipped":
        pytest.skip(result.message)
    if result.error is not None:
        raise result.error
