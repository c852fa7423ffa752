"""Runs the tests below vision/ with timm on the path, in a process of their own: torchvision there disturbs others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import variform as vf
from tests.interop.with_timm import timm_folder

TESTS = sorted((Path(__file__).parent / "vision").glob("test_*.py"))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_with_timm(file: Path) -> None:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join((str(Path(vf.__file__).parents[1]), str(root), timm_folder()))
    environment = {**os.environ, "PYTHONPATH": paths, "VARIFORM_VISION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
