"""The notebooks as pages: their text, their code, and what it prints and draws, run when the site is built.

`python docs/notebooks.py FILE.ipynb` runs one in this process and prints what its cells gave, as JSON.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
FOLDER = DOCS / "notebooks"
VISION = Path(sys.prefix) / "vision"
"""Where `make vision` puts timm; a notebook that imports it is shown without results elsewhere."""


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook, with its pictures."""
    from mkdocs.structure.files import File

    for path in sorted(FOLDER.glob("*.ipynb")):
        text, pictures = page(path, outputs(path) if can_run(path) else None)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def cells(path: Path) -> list[tuple[str, str]]:
    """Kind ("markdown" or "code") and text of each cell."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in found]


def can_run(path: Path) -> bool:
    """Whether what the notebook imports is installed."""
    return VISION.is_dir() or not any("import timm" in text for _, text in cells(path))


def outputs(path: Path) -> list[dict[str, Any]]:
    """What each code cell printed, and drew as PNG in base64, in a process of its own.

    Raises:
        RuntimeError: a cell fails.
    """
    paths = [str(DOCS.parent / "src"), str(DOCS.parent), *([str(VISION)] if VISION.is_dir() else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__)), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{path}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def page(path: Path, results: list[dict[str, Any]] | None) -> tuple[str, dict[str, bytes]]:
    """The notebook in Markdown, and its pictures by file name."""
    lines: list[str] = []
    pictures: dict[str, bytes] = {}
    code = 0
    for kind, text in cells(path):
        if kind == "markdown":
            lines += [text, ""]
            continue
        lines += ["```python", text.removesuffix(";"), "```", ""]
        result = {"text": "", "pictures": []} if results is None else results[code]
        code += 1
        if result["text"].strip():
            lines += ["```text", result["text"].rstrip(), "```", ""]
        for picture in result["pictures"]:
            name = f"{path.stem}_{len(pictures)}.png"
            pictures[name] = base64.b64decode(picture)
            lines += [f"![what the cell draws]({name})", ""]
    link = f"[The notebook itself]({path.name}) runs in Jupyter."
    if results is None:
        link += " The results are left out here: what it imports was not installed when the page was made."
    return "\n".join([*lines, link, ""]), pictures


def run(path: Path) -> list[dict[str, Any]]:
    """Run the code cells in this process, one after the other."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for kind, text in cells(path):
        if kind == "code":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                _run_cell(text, names)
            found.append({"text": printed.getvalue(), "pictures": _drawn()})
    return found


def _run_cell(text: str, names: dict[str, Any]) -> None:
    """As a notebook does: the value of a last expression is shown unless a semicolon ends it."""
    tree = ast.parse(text)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        if value is not None and not text.rstrip().endswith(";"):
            print(repr(value))


def _drawn() -> list[str]:
    from matplotlib import pyplot

    found = []
    for number in pyplot.get_fignums():
        buffer = io.BytesIO()
        pyplot.figure(number).savefig(buffer, format="png", dpi=80, metadata={"Software": None})
        found.append(base64.b64encode(buffer.getvalue()).decode())
    pyplot.close("all")
    return found


if __name__ == "__main__":
    sys.path.remove(str(DOCS))  # or a module beside this file would be taken for another of its name
    if VISION.is_dir():
        from tests.interop.with_timm import declare_operators

        declare_operators()
    print(json.dumps(run(Path(sys.argv[1]))))
