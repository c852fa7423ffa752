"""The notebooks: kept without results, pages of the site, and run from the first cell to the last."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.interop.with_timm import timm_folder

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PRINTED = {
    "2d_attention_patterns": r"-> sparse +2% of the pairs are attended",
    "swin_transformers": r"-> windows +16 windows of 49 tokens: 6.25% of the pairs",
    "vision_transformers": r"values and gradients are equal",
}
DRAWN = {"2d_attention_patterns": 5, "swin_transformers": 2, "vision_transformers": 1}


@pytest.fixture(scope="module")
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("variform_notebooks", ROOT / "docs" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_the_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(PRINTED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_results_are_not_kept_and_readers_find_it(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert f"notebooks/{path.stem}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"notebooks/{path.stem}.md" in (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_without_results_has_all_text_and_says_so(path: Path, hook: Any) -> None:
    text, pictures = hook.page(path, None)
    assert not pictures
    assert "The results are left out here" in text
    for _, cell in hook.cells(path):
        assert cell.removesuffix(";") in text


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, hook: Any) -> None:
    timm_folder()  # where it is missing, the tests that need it are skipped
    text, pictures = hook.page(path, hook.outputs(path))
    assert re.search(PRINTED[path.stem], text)
    assert len(pictures) == DRAWN[path.stem]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    assert all(f"]({name})" in text for name in pictures)
