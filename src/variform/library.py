"""Registers the parts that come with the library: every module below `parts` and `stack`."""

from __future__ import annotations

import importlib
import pkgutil


def load_parts() -> None:
    """Import every module of parts; a new file is found without being listed anywhere."""
    for package in ("variform.parts", "variform.stack"):
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, package + "."):
            importlib.import_module(module.name)
