"""Tree shaking: the definitions that code needs, from whatever modules they stand in, each once."""

from __future__ import annotations

import ast
import builtins
import copy
import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from variform.errors import ConfigError

Place = tuple[str, str]
"""A definition: the name of its module, and its own."""

_BARRED = {
    "variform.ops.attention": "it calls the choice of attention backends",
    "variform.ops.masks": "it works with symbolic masks",
    "variform.stack.state": "it keeps decode state",
    "variform.core": "it works with descriptions of parts",
    "variform.inspect": "it works with descriptions of parts",
}
_ALLOWED_OUTSIDE = ("torch", *sys.stdlib_module_names)

STANDINS = "variform.export.standins"
"""The package of what is written in the place of the library's machinery; its modules are the next four."""
LAYERS, ATTENTION, SCORES, EXPERTS, PATTERNS = (
    f"{STANDINS}.{name}" for name in ("layers", "attention", "scores", "experts", "patterns")
)


class Unsupported(Exception):
    """Code that cannot stand alone; the message says why."""


@functools.cache
def module_tree(module: str) -> ast.Module:
    """The syntax tree of a module's source."""
    try:
        return ast.parse(inspect.getsource(importlib.import_module(module)))
    except (OSError, TypeError, SyntaxError, ImportError):
        raise Unsupported(f"the source of {module} is not at hand") from None


@functools.cache
def definition(place: Place) -> ast.stmt:
    """The statement that binds a name in a module.

    Raises:
        Unsupported: there is none.
    """
    module, name = place
    for node in module_tree(module).body:
        match node:
            case ast.FunctionDef(name=found) | ast.ClassDef(name=found) if found == name:
                return node
            case ast.Assign(targets=[ast.Name(id=found)]) | ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                return node
            case ast.Import(names=names) if any((a.asname or a.name.split(".")[0]) == name for a in names):
                return node
            case ast.ImportFrom(names=names) if any((a.asname or a.name) == name for a in names):
                return node
    raise Unsupported(f"{name} is not defined at the top of {module}")


@dataclass
class Shaken:
    """What a file is made of, and the names by which its pieces call one another.

    Args:
        prepare: turns a copy of a definition into what is to be written.
        standins: definitions that others stand for.
    """

    prepare: Callable[[ast.stmt, Place], ast.stmt]
    standins: dict[Place, Place]
    pieces: dict[Place, ast.stmt] = field(default_factory=dict)
    names: dict[str, Place] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)

    def need(self, module: str, name: str) -> str:
        """Take in what `name` means in a module; returns what it is called in the file.

        Raises:
            Unsupported: it cannot stand alone.
        """
        if name.startswith("@"):  # a name of another module, written by `at`
            module, name = name[1:].split(":")
        place = self.standins.get((module, name), (module, name))
        node = definition(place)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return self._imported(node, place)
        called = self._called(place)
        if place not in self.pieces:
            self._bar(place)
            self.pieces[place] = node  # a definition may need itself
            try:
                written = self.link(self.prepare(copy.deepcopy(node), place), place[0])
            finally:
                del self.pieces[place]  # what it needs stands before it
            _rename(written, called)
            self.pieces[place] = written
        return called

    def link(self, node: ast.stmt, module: str) -> ast.stmt:
        """Take in all that a piece of code from a module needs; its names become those of the file."""
        renamed: dict[str, str] = {}
        for name in free_names(node):
            called = self.need(module, name)
            if called != name:
                renamed[name] = called
        if renamed:
            _Renamer(renamed).visit(node)
        return node

    def _called(self, place: Place) -> str:
        name, count = place[1], 1
        while self.names.setdefault(name, place) != place:
            count += 1
            name = f"{place[1]}_{count}"
        return name

    def _imported(self, node: ast.Import | ast.ImportFrom, place: Place) -> str:
        name = place[1]
        alias = next(a for a in node.names if (a.asname or a.name.split(".")[0]) == name or a.name == name)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            source, found = node.module, alias.name
            if source.split(".")[0] not in _ALLOWED_OUTSIDE:
                if isinstance(getattr(importlib.import_module(source), found, None), ModuleType):
                    raise Unsupported(f"it uses the module {source}.{found} as a whole")
                return self.need(source, found)
            if (source, found) == ("torch.nn", "functional"):
                self.imports.add("from torch.nn import functional as F")
                return "F"
            self.imports.add(f"from {source} import {found}" + (f" as {alias.asname}" if alias.asname else ""))
            return name
        if alias.name.split(".")[0] not in _ALLOWED_OUTSIDE:
            raise Unsupported(f"it needs the package {alias.name}")
        self.imports.add(f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
        return name

    @staticmethod
    def _bar(place: Place) -> None:
        for barred, reason in _BARRED.items():
            if place[0] == barred or place[0].startswith(f"{barred}."):
                raise Unsupported(f"{reason} ({place[1]})")


def at(module: str, name: str) -> ast.Name:
    """The name that stands for what `name` means in another module than the one it is put into."""
    return ast.Name(f"@{module}:{name}", ast.Load())


def free_names(node: ast.AST) -> list[str]:
    """Names that a definition reads and does not bind itself, in order."""
    bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    bound |= {n.name for n in ast.walk(node) if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n is not node}
    bound |= {n.name for n in ast.walk(node) if isinstance(n, ast.ExceptHandler) and n.name}
    read = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    return [name for name in dict.fromkeys(read) if name not in bound and not hasattr(builtins, name)]


def _rename(node: ast.stmt, name: str) -> None:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            node.name = name
        case ast.Assign(targets=[ast.Name() as target]) | ast.AnnAssign(target=ast.Name() as target):
            target.id = name


class _Renamer(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.names.get(node.id, node.id), node.ctx)


def unsupported(problems: list[tuple[str, str]]) -> ConfigError:
    """One error for all parts that cannot stand alone: (path, reason)."""
    from variform.errors import Problem

    return ConfigError([Problem(path, f"this part has no standalone form: {reason}") for path, reason in problems])
