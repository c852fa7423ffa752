"""Every example in README.md and docs/ runs as it stands: Python blocks, and the `variform` commands of shell blocks.

The blocks of one file share a namespace and an empty folder, like a reader who types them in one after the other. A
block with `title="model.yaml"` is also written to that folder under its name, so that later ones can use it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.with_timm import timm_folder
from tests.snippets.markdown import Block, blocks, script

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "bash", "yaml", "json", "toml", "text", "diff"}
TITLE = re.compile(r'title="([\w.-]+)"')

# Shell lines that are not run here: what the line starts with -> why.
NOT_RUN = {
    "make ": "the checks themselves; .ci/run and the tests of the demo run them",
    "pip install ": "tests/test_packaging.py installs the wheel",
    "python -m pytest": "this very suite",
    "python -m variform.dialects.xformers.benchmarks.": "tests/dialects/xformers/test_benchmark.py runs it",
    "python3 examples/build_model/": "tests/snippets/test_seeds.py runs it",
    "python3 examples/": "minutes long; tests/examples runs them",
    "pytest --pyargs ": "tests/contract and tests/dialects/xformers/test_adopting.py run it",
    "python -m variform.dialects.xformers.benchmarks.LRA.": "tests/dialects/xformers/lra and the seeds run it",
    "variform bench ": "tests/dialects/xformers/test_adopting.py runs it",
    "variform train ": "minutes long; the tests of the training command run it",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def titled(document: Path) -> list[tuple[str, Block]]:
    return [(match[1], block) for block in blocks(document) if (match := TITLE.fullmatch(block.info))]


def commands(document: Path) -> list[str]:
    lines = [line for block in blocks(document) if block.language == "bash" for line in block.code.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def run(arguments: list[str], folder: Path, *paths: str) -> None:
    before = os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((*paths, before)) if paths else before},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_fences_are_plain(document: Path) -> None:
    for block in blocks(document):
        where = f"{name(document)}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: give this fence one of the languages {sorted(LANGUAGES)}"
        assert not block.info or TITLE.fullmatch(block.info), f"{where}: no other words than the language and a title"
    for line in commands(document):
        assert line.startswith(("variform ", *NOT_RUN)), f"{name(document)}: neither run nor listed in NOT_RUN: {line}"


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if script(path).strip()], ids=name)
def test_python_blocks_run(document: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for title, block in titled(document):
        (folder / title).write_text(block.code + "\n", encoding="utf-8")
    source = tmp_path / f"{document.stem.lower()}.py"  # line numbers in a traceback are those of the document
    text = script(document)
    paths: tuple[str, ...] = ()
    if "import timm" in text:
        paths = (str(ROOT), timm_folder())
        text = f"from tests.interop.with_timm import declare_operators; declare_operators(); {text.lstrip()}"
        text = "\n" * (len(script(document)) - len(script(document).lstrip())) + text
    source.write_text(text, encoding="utf-8")
    run([str(source)], folder, *paths)


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if commands(path)], ids=name)
def test_commands_run(document: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")  # the commands are written for the root of a clone
    for title, block in titled(document):
        (tmp_path / title).write_text(block.code + "\n", encoding="utf-8")
    for line in commands(document):
        if not line.startswith(tuple(NOT_RUN)):
            run(["-m", "variform.cli", *shlex.split(line, comments=True)[1:]], tmp_path)


def test_no_exception_is_left_over() -> None:
    lines = [line for document in DOCUMENTS for line in commands(document)]
    unused = [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)]
    assert not unused, f"no document uses {unused}"
