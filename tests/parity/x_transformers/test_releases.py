"""Runs `test_options.py` against the earlier release of x-transformers, in a process of its own."""

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
BUDGET = 300
"""Seconds that the comparison may take."""


def folder() -> str:
    """Where `make releases` put it, without its dependencies; a test without it is skipped."""
    found = Path(sys.prefix) / f"x-transformers-{OLDER}"
    if not found.is_dir():
        assert not os.environ.get("CI"), f"{found} is missing: make releases"
        pytest.skip(f"x-transformers {OLDER} is not installed: make releases")
    return str(found)


def test_the_earlier_release() -> None:
    root = Path(__file__).parents[3]
    paths = os.pathsep.join((folder(), str(Path(vf.__file__).parents[1]), str(root)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("test_options.py"))],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths, "X_TRANSFORMERS": OLDER},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert time.monotonic() - began < BUDGET
