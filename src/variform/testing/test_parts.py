"""The suite as tests over the registry: `pytest --pyargs variform.testing -p my_module -k my_part`.

A module named with `-p` is imported first, so the parts it registers are among those that are tested.
"""

from __future__ import annotations

import pytest

from variform.dialects.xformers.adopting import NOT_ADOPTED
from variform.errors import ConfigError
from variform.testing import Case, Check, all_samples, checks, report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each instance and check, named `kind/name-check`; slow ones only where -m speaks of them."""
    if metafunc.function is test_adoption:
        list(all_samples())  # what was registered is looked at now
        metafunc.parametrize(("name", "reason"), [pytest.param(*pair, id=pair[0]) for pair in NOT_ADOPTED.items()])
        return
    with_slow = "slow" in metafunc.config.getoption("markexpr")
    params = []
    for sample in all_samples():
        for one in checks():
            case = Case(sample)
            slow = _is_slow(case, one)
            if with_slow or not slow:
                marks = [pytest.mark.slow] if slow else []
                params.append(pytest.param(case, one, id=f"{case.label}-{one.name}", marks=marks))
    metafunc.parametrize(("case", "one"), params)


def _is_slow(case: Case, one: Check) -> bool:
    """Compiling takes a second each: beyond the models, further variants of a part are left to the slow run."""
    return one.slow or (one.name == "compile" and bool(case.sample.variant) and case.part.kind != "model")


def test_part(case: Case, one: Check) -> None:
    """The part keeps this promise."""
    result = report.run(one, case)
    if result.status == "skipped":
        pytest.skip(result.message)
    if result.error is not None:
        raise result.error


def test_adoption(name: str, reason: str) -> None:
    """A part that was registered with the xFormers dialect can be checked."""
    raise ConfigError(f"{name!r} is registered with the xFormers dialect and cannot be checked: {reason}")
