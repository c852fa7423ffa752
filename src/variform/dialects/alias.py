"""Running unmodified files: after `alias("x_transformers")`, `import x_transformers` finds the dialect."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType

from variform.errors import ConfigError, did_you_mean

ROOT = "variform.dialects"
FLAT = ("model_builder", "attention_offset_module", "prebuilt_blocks")
DIALECTS: dict[str, dict[str, str]] = {
    "x_transformers": {"x_transformers": f"{ROOT}.x_transformers"},
    "xformers": {"xformers": f"{ROOT}.xformers"},
    # The modules of configaformers lie flat beside one another, without a package.
    "configaformers": {name: f"{ROOT}.configaformers.{name}" for name in FLAT},
}
"""Dialect -> the top-level modules of the original, and what stands in for each."""


def alias(name: str) -> Alias:
    """Let the import root of a system resolve to our dialect, for the rest of this process.

        alias("x_transformers")
        from x_transformers import Decoder  # variform's

    The result can be used in a `with` statement, or undone by `.remove()`. Asking again for what is in place is fine.

    Args:
        name: "x_transformers", "xformers" or "configaformers".

    Raises:
        ConfigError: an unknown name; the real package is installed or imported already; the dialect does not exist.
    """
    if name not in DIALECTS:
        raise ConfigError(f"there is no dialect {name!r}", hint=did_you_mean(name, DIALECTS))
    present = next((finder for finder in sys.meta_path if isinstance(finder, Alias) and finder.name == name), None)
    if present is not None:
        return present
    finder = Alias(name, DIALECTS[name])
    finder.refuse_originals()
    sys.meta_path.insert(0, finder)
    return finder


class Alias(MetaPathFinder):
    """Finds the modules of one system in our dialect.

    Args:
        name: the dialect.
        roots: top-level module of the original -> our module.
    """

    def __init__(self, name: str, roots: dict[str, str]) -> None:
        self.name = name
        self.roots = roots

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The import system's question: who can load `fullname`?"""
        ours = self._ours(fullname)
        if ours is None or _spec_of(ours) is None:
            return None
        return importlib.util.spec_from_loader(fullname, _Borrowed(ours))

    def refuse_originals(self) -> None:
        """Refuse to stand in for a package that is there, and for one of which we have no module at all."""
        served = {root: ours for root, ours in self.roots.items() if _spec_of(ours) is not None}
        if not served:
            raise ConfigError(f"there is nothing yet that could stand in for {self.name}", path=self.name)
        for root, ours in served.items():
            if root in sys.modules:
                message = f"{root} is imported already"
                raise ConfigError(message, path=root, hint=f"import {ours} instead, or alias it in a fresh process")
            found = _spec_of(root)
            if found is not None:
                where = found.origin or "a namespace package"
                hint = f"uninstall it, or import {ours} instead"
                raise ConfigError(f"the real {root} is installed ({where})", path=root, hint=hint)

    def remove(self) -> None:
        """Undo: later imports of the original's names fail again. What was imported before stays usable."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for fullname in [name for name in sys.modules if self._ours(name) is not None]:
            del sys.modules[fullname]

    def __enter__(self) -> Alias:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _ours(self, fullname: str) -> str | None:
        root, _, rest = fullname.partition(".")
        ours = self.roots.get(root)
        return None if ours is None else f"{ours}.{rest}" if rest else ours


class _Borrowed(Loader):
    """Hands out one of our modules under another name: the same object, so that classes stay the same classes."""

    def __init__(self, ours: str) -> None:
        self.ours = ours
        self.own_spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.ours)
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already; the import system has just put the borrowed name's spec on it."""
        module.__spec__ = self.own_spec


def _spec_of(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # no parent package; a module that was put in place by hand
        return None
