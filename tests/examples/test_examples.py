"""The single-file examples learn what they promise, started as a user starts them, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import variform as vf

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(folder: Path, file: str, *options: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(vf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / file), *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert not list(folder.iterdir()), "an example leaves nothing behind"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_microgpt_learns_and_writes_a_paragraph(tmp_path: Path) -> None:
    printed = run(tmp_path, "microGPT.py")
    found = re.search(r"loss on held-out text: ([\d.]+) nats a character\n(.*)", printed, re.DOTALL)
    assert found is not None
    assert float(found[1]) <= 2.0
    assert found[2].startswith("Friends of my soul")
    assert len(found[2]) >= 500


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("file", "options", "least"),
    [("microViT.py", (), 0.90), ("cifar_MetaFormer.py", (), 0.85)],
    ids=["microViT", "MetaFormer"],
)
def test_images_are_told_apart(tmp_path: Path, file: str, options: tuple[str, ...], least: float) -> None:
    found = re.search(r"accuracy on 360 test images: ([\d.]+)%", run(tmp_path, file, *options))
    assert found is not None
    assert float(found[1]) / 100 >= least


@pytest.mark.timeout(300)
def test_other_attentions_take_part(tmp_path: Path) -> None:
    assert "accuracy on" in run(tmp_path, "cifar_MetaFormer.py", "--epochs", "1", "--attention", "pooling")
