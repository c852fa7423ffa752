"""Runs the comparisons with x-transformers against its earlier release, in processes of their own.

What that release fails at is marked where it is compared (`harness.unlike`), and has to fail there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import variform as vf
from tests.parity.x_transformers.option_set import VERSIONS

OLDER = VERSIONS[0]
BUDGET = 150
"""Seconds that either half of the comparison may take."""

ALONE = ("options", "releases", "ledger", "gallery", "lifecycle", "decoding")
"""Files that are run by themselves, or that compare with no other package."""


def folder() -> str:
    """Where `make releases` put it, without its dependencies; a test without it is skipped."""
    found = Path(sys.prefix) / f"x-transformers-{OLDER}"
    if not found.is_dir():
        assert not os.environ.get("CI"), f"{found} is missing: make releases"
        pytest.skip(f"x-transformers {OLDER} is not installed: make releases")
    return str(found)


def files(half: str) -> list[str]:
    """The option sets, or everything else that is compared: wrappers, calls, combinations."""
    here = Path(__file__).parent
    if half == "options":
        return [str(here / "test_options.py")]
    return [str(path) for path in sorted(here.glob("test_*.py")) if path.stem.removeprefix("test_") not in ALONE]


@pytest.mark.timeout(2 * BUDGET)
@pytest.mark.parametrize("half", ["options", "wrappers"])
def test_the_earlier_release(half: str) -> None:
    root = Path(__file__).parents[3]
    paths = os.pathsep.join((folder(), str(Path(vf.__file__).parents[1]), str(root)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, *files(half)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths, "X_TRANSFORMERS": OLDER},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert time.monotonic() - began < BUDGET
