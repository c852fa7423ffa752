"""Modules of users that register parts: imported by name, or from a file of this folder."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from variform.errors import ConfigError, did_you_mean


def import_user_modules(
    modules: Iterable[str], names: Iterable[str], known: Container[str], note: Callable[[str], None]
) -> None:
    """Import the modules asked for, and those of this folder that register a part asked for by a name nobody knows.

    Args:
        modules: to import, this folder's among them.
        names: of parts that are asked for.
        known: the names that are registered already.
        note: is told which file is imported for a name.

    Raises:
        ConfigError: a module that cannot be found.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            hint = did_you_mean(module, [path.stem for path in Path.cwd().glob("*.py")])
            raise ConfigError(f"there is no module {error.name!r}", path="-p", hint=hint) from None
    for name in names:
        if name not in known:
            _find_module(name, note)


def _find_module(name: str, note: Callable[[str], None]) -> None:
    """As pytest does with conftest.py: a file beside the caller that registers the very name is imported."""
    call = re.compile(rf"\bregister\w*\(\s*[\"']{re.escape(name)}[\"']")
    for path in sorted(Path.cwd().glob("*.py")):
        if call.search(path.read_text(encoding="utf-8", errors="replace")):
            note(f"{name} is registered in {path.name}, which is imported")
            importlib.import_module(path.stem)
            return
