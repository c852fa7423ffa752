"""Modules by the paths that upstream's model has."""

from __future__ import annotations

from torch import nn

from variform.dialects.x_transformers.errors import KeywordError
from variform.weights.x_transformers import entries_of


def module_at(net: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module at a path, and the path that it has here.

    Args:
        net: a model of this dialect.
        path: a module's path here, or in upstream's model: the module here that has just its parameters.

    Raises:
        KeywordError: there is none.
    """
    modules = dict(net.named_modules())
    if path in modules:
        return modules[path], path
    wanted = {id(p) for entry in entries_of(net) if entry.key.startswith(f"{path}.") for p in entry.params}
    if not wanted:
        raise KeywordError("there is no module at this path, here or upstream", path=path)
    found = [name for name, module in modules.items() if {id(p) for p in module.parameters()} == wanted]
    if not found:
        message = "no module here has just the parameters of this one; give a path of `named_modules()`"
        raise KeywordError(message, path=path)
    name = max(found, key=len)
    return modules[name], name


def replaced(net: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in the place of another, by its path here."""
    parent, _, name = path.rpartition(".")
    net.get_submodule(parent)._modules[name] = new
