"""Every code block and command that users of the three systems know from their documentation has a test here.

What a block is stands in `seeds/ledger.yaml`. A row with `xfail` must fail until what it waits for exists; then that
field goes.
"""

import hashlib
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import variform
from tests.interop.with_timm import timm_folder
from tests.snippets import ledger
from tests.snippets.ledger import ROOT, Entry, code_blocks, entries, substitutions

# The blocks as published: change a block by a row in substitutions.yaml, never here or there.
PUBLISHED = {
    "configaformers_readme": "2c48169dfff07a6ebd947c18abdff1bef001f77080382ca384beaefebf72c164",
    "x_transformers_readme": "376f34eb566d42bf73f04a955facee93422b941ff817c3711e3f73f07c07f5b0",
    "xformers_extend": "5c1958cd70a25d1d7b949226b6059494f9d09eb63077ef50d00afc7c3420c9dd",
    "xformers_full_models": "91ebd6e6df05f3c024cf2a1c85025c6772e24d66924fd1ce0e2cd16cffabc1ee",
    "xformers_howto": "c313508ff30449c69b118cba43c62c391b46ad667fc89c1823fb70d110fa26ff",
}


def of_kind(*kinds: str) -> list[Any]:
    rows = [entry for entry in entries().values() if entry.kind in kinds]
    return [pytest.param(entry, id=entry.id, marks=marks(entry)) for entry in rows]


def marks(entry: Entry) -> list[pytest.MarkDecorator]:
    late = [pytest.mark.xfail(strict=True, reason=entry.xfail)] if entry.xfail else []
    return late + ([pytest.mark.slow] if entry.slow else [])


def find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_blocks_are_as_published() -> None:
    found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in ledger.documents()}
    assert found == PUBLISHED


def test_every_block_has_a_row() -> None:
    assert {entry.block_id for entry in entries().values()} == set(code_blocks())
    assert set(code_blocks()) <= set(entries()), "a block has only variants: give it a row of its own"


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.id)
def test_row_is_whole(entry: Entry) -> None:
    assert entry.kind in ledger.KINDS
    assert entry.why or entry.kind in ("run", "command"), "say why this block is not run"
    assert entry.kind in ("run", "command", "excluded") or entry.of or entry.why
    if entry.kind == "output":
        assert (
            any(row.prints and f"{row.document}/{row.prints}" == entry.id for row in entries().values()) or not entry.of
        )
    if entry.kind == "fragment":
        whole = code_blocks()[f"{entry.document}/{entry.of}"].code
        assert all(line in whole for line in code_blocks()[entry.block_id].code.splitlines())
    if entry.kind == "run":
        compile(ledger.source(entry), entry.id, "exec")


def test_no_substitution_is_left_over() -> None:
    table = substitutions()
    assert set(table) == {"everywhere", "without_cuda", "blocks"}
    for rule in table["everywhere"] + table["without_cuda"]:
        assert rule["why"]
        assert any(re.search(rule["find"], block.code, re.MULTILINE) for block in code_blocks().values()), rule
    for name, row in table["blocks"].items():
        assert row["why"]
        assert set(row) <= {"why", "given", "replace", "runs"}
        code = code_blocks()[entries()[name].block_id].code
        assert all(re.search(rule["find"], code, re.MULTILINE) for rule in row.get("replace", [])), name


@pytest.mark.parametrize("entry", of_kind("run"))
def test_block_runs(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not entry.process and not entry.vision:
        ledger.run(entry)
        return
    source = str(Path(variform.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, str(ROOT), *([timm_folder()] if entry.vision else [])]))
    call = [sys.executable, "-m", "tests.snippets.ledger", entry.id]
    done = subprocess.run(call, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("entry", of_kind("signature"))
def test_signature_is_kept(entry: Entry) -> None:
    shown = ledger.signatures(entry)
    targets = entry.of if isinstance(entry.of, dict) else {next(iter(shown)): entry.of}
    for name, path in targets.items():
        assert shown[name]
        for what, names in shown[name]:
            missing = [parameter for parameter in names if parameter not in ledger.actual(find(path), what)]
            assert not missing, f"{path}.{what} lacks {missing}"


@pytest.mark.parametrize("entry", of_kind("command"))
def test_command_runs(entry: Entry, tmp_path: Path) -> None:
    command, _, expected = code_blocks()[entry.block_id].code.partition("\n")
    words = shlex.split(ledger.block_row(entry.id).get("runs", command.removeprefix("$ ")).format(root=ROOT))
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    if entry.match == "tree":
        ledger.check_tree(expected, done.stdout)
    elif expected.strip():
        printed = [line.strip() for line in done.stdout.splitlines()]
        assert [line.strip() for line in expected.splitlines() if line.strip()] == [line for line in printed if line]
    ledger.check_printed(entry, done.stdout)


@pytest.mark.parametrize("entry", of_kind("config"))
def test_config_is_kept(entry: Entry) -> None:
    file = yaml.safe_load((ROOT / entry.of).read_text(encoding="utf-8"))
    assert file == yaml.safe_load(ledger.source(entry))
