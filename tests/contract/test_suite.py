"""The suite itself: parts that are wrong on purpose fail, each on the right check and on no other."""

from collections.abc import Iterator

import pytest

import variform as vf
from tests.contract.broken import BROKEN, Sound
from variform import testing
from variform.core.registry import unregister
from variform.testing import report

QUICK = [one.name for one in testing.checks() if not one.slow]


@pytest.fixture
def _registered() -> Iterator[None]:
    for name, (part, _) in BROKEN.items():
        vf.register(f"broken_{name}")(part)
    yield
    for name, (part, _) in BROKEN.items():
        unregister(part.kind, f"broken_{name}")


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_part_fails_on_the_right_check_and_on_no_other(name: str) -> None:
    part, expected = BROKEN[name]
    compiling = "compile" in expected
    chosen = [one for one in testing.checks() if one.name in QUICK and (compiling or one.name != "compile")]
    results = [report.run(one, case) for case in testing.cases(part) for one in chosen]
    failed = {result.check: result.message for result in results if not result.ok}
    assert set(failed) == expected, failed


@pytest.mark.usefixtures("_registered")
def test_every_check_is_failed_by_some_broken_part() -> None:
    caught = {check for _, expected in BROKEN.values() for check in expected}
    assert {one.name for one in testing.checks()} - caught == {"refuses", "compiled_backends"}


@pytest.mark.usefixtures("_registered")
def test_check_part_names_what_failed() -> None:
    assert all(result.ok for result in testing.check_part(Sound, skip=["compile"]))
    name = "broken_IgnoresTheMask"
    with pytest.raises(
        AssertionError, match=rf"1 of \d+ checks failed:\n  mixer/{name} mask: failed: token 1 depends on"
    ):
        testing.check_part(name, skip=["compile"])
    result = testing.run_check("mask", f"mixer/{name}")
    assert result.status == "failed"
    assert result.check == "mask"
    assert "which the mask forbids" in str(result)


def test_checks_take_a_class_a_name_a_spec_or_a_built_part() -> None:
    spec = vf.parts()["norm", "rms_norm"].spec(eps=0.1)
    for part in (spec.part, "rms_norm", "norm/rms_norm", spec, vf.build(spec, dim=16)):
        assert testing.run_check("shapes", part).status == "passed"
    assert testing.run_check("shapes", "rms_norm", dim=24, heads=3).status == "passed"


def test_what_does_not_apply_is_skipped_with_a_reason() -> None:
    result = testing.run_check("backends", "rms_norm")
    assert (result.status, result.ok) == ("skipped", True)
    assert "no choice of backends" in result.message


def test_unknown_checks_and_parts_are_config_errors() -> None:
    with pytest.raises(vf.ConfigError, match="did you mean 'causal'"):
        testing.run_check("casual", "rms_norm")
    with pytest.raises(vf.ConfigError, match="did you mean 'causal'"):
        testing.check_part("rms_norm", skip=["casual"])
    with pytest.raises(vf.ConfigError, match="did you mean 'rms_norm'"):
        testing.check_part("rmsnorm")


def test_every_check_says_what_it_is_about() -> None:
    for one in testing.checks():
        assert len(one.about) > 20, one.name
