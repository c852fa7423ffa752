"""A class of a program on its way."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from torch import nn


@dataclass
class Scope:
    """A class on its way: the program itself, or a block of it.

    Args:
        name: of the class.
        making: the statements of its constructor.
        running: the statements of its forward.
        keys: where each module stands in a weights file.
        takes: names of shared modules that the constructor is given.
        modules: names of modules that are taken.
        streams: whether its steps read the streams of the model around it.
    """

    name: str
    making: list[ast.stmt] = field(default_factory=list)
    running: list[ast.stmt] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)
    takes: dict[str, None] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    streams: bool = False

    def module_name(self, wanted: str) -> str:
        """A name for a module that is free."""
        name, count = wanted, 1
        while name in self.modules or hasattr(nn.Module, name):
            count += 1
            name = f"{wanted}_{count}"
        self.modules.add(name)
        return name

    def kept(self, key: str) -> str | None:
        """The module that stands at a place of a weights file already: that of a line which runs again."""
        return next((name for name, place in self.keys if place == key), None)
