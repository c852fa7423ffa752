"""Option sets by family; every module has a list `SETS`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

from tests.parity.x_transformers.option_set import OptionSet


def all_sets() -> list[OptionSet]:
    """The sets of every family, in the order of the families' names; each is named `family/name`."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [
        replace(one, name=f"{name}/{one.name}")
        for name in modules
        for one in importlib.import_module(f"{__name__}.{name}").SETS
    ]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names of option sets must differ: {', '.join(twice)}")
    return found
