"""The direction of imports: a package may import only the packages named beside it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "variform"
MODELS = {"errors", "core", "ops", "parts", "stack", "models"}
USES = MODELS | {"inspect", "lower", "weights", "generate", "wrappers", "interop"}
MAY_IMPORT = {
    "errors": set(),
    "core": {"errors"},
    "ops": {"errors"},
    "parts": {"errors", "core", "ops"},
    "stack": {"errors", "core", "ops", "parts"},
    "models": MODELS,
    "library": MODELS,
    "lower": MODELS,
    "export": USES,
    "inspect": MODELS,
    "weights": MODELS,
    "generate": MODELS,
    "wrappers": MODELS | {"generate"},
    "interop": MODELS | {"inspect", "weights"},
    "dialects": USES,
    "benchmarks": USES | {"dialects", "train"},  # programs of the dialects, which nothing imports
    "bench": USES | {"testing"},
    "train": USES,
    "study": USES | {"train"},
}
TOP = {"__init__", "__main__", "cli", "testing"}  # may import anything


def package(parts: tuple[str, ...]) -> str:
    """The unit that the rules speak of: a package, a top-level module, or one dialect."""
    if parts[:1] == ("dialects",) and "benchmarks" in parts[2:3]:
        return "benchmarks"
    if parts[:1] == ("dialects",) and ROOT.joinpath(*parts[:2]).is_dir() and len(parts) > 1:
        return "/".join(parts[:2])
    return parts[0] if parts else "__init__"


def imported(file: Path) -> set[str]:
    here = ("variform", *file.relative_to(ROOT).with_suffix("").parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level]] if node.level else []
            names |= {".".join(filter(None, [*base, node.module, alias.name])) for alias in node.names}
    ours = [tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "variform"]
    return {package(parts if parts and is_module(parts[:1]) else ()) for parts in ours}


def is_module(parts: tuple[str, ...]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def is_allowed(source: str, target: str) -> bool:
    if source in TOP or source == target:
        return True
    kind, other = source.split("/")[0], target.split("/")[0]
    if kind == other == "dialects":  # their common front door knows each dialect and each dialect knows it
        return "dialects" in (source, target)
    return other in MAY_IMPORT[kind]


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    source = package(file.relative_to(ROOT).with_suffix("").parts)
    assert source in TOP or source.split("/")[0] in MAY_IMPORT, f"{source} has no row in MAY_IMPORT"
    wrong = sorted(target for target in imported(file) if not is_allowed(source, target))
    assert not wrong, f"{source} must not import {', '.join(wrong)}"
