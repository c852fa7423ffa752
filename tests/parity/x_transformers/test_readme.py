"""The snippets of the installed package's own description run when the name of what is imported is changed.

They are read from its metadata, made small (`SIZES`) and run; what is only built there is called as well.
"""

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import variform.dialects.x_transformers as ours
from variform.dialects.x_transformers.errors import KeywordError

pytest.importorskip("x_transformers")

SIZES = {"20000": "40", "50000": "40", "12288": "32", "4096": "40", "2048": "16", "1024": "20", "777": "9", "512": "16"}
SIZES |= {"256": "32", "128": "4", "96": "2", "12": "2"}
"""What numbers of the snippets become; an image of 256 is one patch of 32 then."""


def snippets() -> Iterator[str]:
    """Python blocks; one that imports nothing goes on where the block before it ended."""
    text = str(importlib.metadata.metadata("x-transformers").get_payload())
    before = ""
    for block in re.findall(r"^[ \t]*```python[^\n]*\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE):
        before = block if "import torch" in block or "import Decoder" in block else f"{before}\n{block}"
        yield before


def run(block: str, package: str = ours.__name__) -> dict[str, Any]:
    """The names that a snippet leaves."""
    code = re.sub(r"\b\d+\b", lambda number: SIZES.get(number[0], number[0]), re.sub(r"#.*", "", block))
    code = code.replace(".cuda()", "").replace("from x_transformers import", f"from {package} import")
    names: dict[str, Any] = {"torch": torch}
    exec(f"from {package} import *", names)
    public = set(names)
    exec(compile(code, "snippet", "exec"), names)
    return {name: value for name, value in names.items() if name not in public}


SNIPPETS = list(snippets())


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) > 50


@pytest.mark.parametrize("block", [pytest.param(block, id=str(number)) for number, block in enumerate(SNIPPETS)])
def test_a_snippet_runs(block: str) -> None:
    torch.manual_seed(0)
    if "resi_dual" in block:  # described, and in no release since 2.26
        with pytest.raises(AssertionError, match="resi_dual"):
            run(block, "x_transformers")
        with pytest.raises(KeywordError, match="Decoder has no keyword 'resi_dual'"):
            run(block)
        return
    made = [value for value in run(block).values() if isinstance(value, torch.nn.Module)]
    assert made
    for model in made:
        if isinstance(model, ours.TransformerWrapper) and "context" not in block:
            ids = torch.randint(0, model.num_tokens, (2, 7))
            assert model(ids).shape == (2, 7, model.num_tokens)
