"""Parts that users write are picked up: by one call, and by pytest on the installed package."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import variform as vf
from variform import testing
from variform.core.registry import unregister

MODULE = '''
import torch
import variform as vf
from torch import nn
from variform.parts.kinds import FeedForward


@vf.register("users_square")
class Square(FeedForward):
    """A square between two maps."""

    def __init__(self, dim: int = vf.INHERIT, width: int = 5) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x, streams):
        return self.out(self.into(x).square()) {extra}
'''


def run_pytest(folder: Path, extra: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The suite on a module in a folder of its own, as a user would run it."""
    (folder / "my_parts.py").write_text(MODULE.format(extra=extra))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--pyargs",
        "variform.testing",
        "-p",
        "my_parts",
        "-p",
        "no:cacheprovider",
    ]
    source = str(Path(vf.__file__).parents[1])
    environment = {"PYTHONPATH": f"{folder}:{source}", "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_pytest_on_the_package_tests_a_users_part(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "", "-k", "users_square and not compile", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("builds", "causal", "padding", "cache", "cost"):
        assert f"feedforward/users_square-{check}] PASSED" in done.stdout


def test_pytest_on_the_package_shows_what_is_wrong(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "+ x.mean(1, keepdim=True)", "-k", "users_square and (causal or shapes)", "-q")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "outputs up to 0 have a gradient from token" in done.stdout


def test_one_call_on_a_users_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts_of_a_user.py").write_text(MODULE.format(extra=""))
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        part = importlib.import_module("parts_of_a_user").Square
        results = testing.check_part(part, skip=["compile"])
        assert {result.status for result in results} == {"passed", "skipped"}
        assert results[0].part == "feedforward/users_square"
        assert all(result.ok for result in testing.check_part(part.spec(width=3), skip=["compile"], dim=24, heads=3))
    finally:
        unregister("feedforward", "users_square")


def test_required_fields_that_cannot_be_guessed_ask_for_a_spec() -> None:
    class Choosy(vf.Part):
        """Needs an object."""

        kind = "feedforward"

        def __init__(self, oracle: complex) -> None:
            super().__init__()

    with pytest.raises(vf.ConfigError, match=r"cannot guess the required field 'oracle'.*pass a spec"):
        testing.cases(Choosy)


def test_instances_of_a_users_part_can_be_registered() -> None:
    spec = vf.parts()["norm", "rms_norm"].spec

    class Made(vf.parts()["norm", "rms_norm"].__mro__[1]):  # type: ignore[misc]
        """A norm."""

        def forward(self, x: object, condition: object = None) -> object:
            return x

    @testing.samples_for(Made)
    def _samples() -> list[testing.Sample]:
        return [testing.Sample(spec(eps=0.1), "one"), testing.Sample(spec(eps=0.2), "two")]

    assert [case.label for case in testing.cases(Made)] == ["norm/rms_norm[one]", "norm/rms_norm[two]"]
