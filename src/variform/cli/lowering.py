"""`variform lower`: any model as a program, printed or saved."""

from __future__ import annotations

import argparse
from typing import Any

from variform.cli.costing import sizes_from
from variform.cli.output import show
from variform.core.spec import Spec
from variform.dialects.configaformers.text import ENDINGS, config_text, save_config
from variform.dialects.configaformers.write import to_config
from variform.stack.program import ProgramModel

ARGUMENTS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--out",), {"metavar": "FILE", "help": f"save it instead: a file that ends in {', '.join(ENDINGS)}"}),
    (
        ("--depth",),
        {"choices": ("parts", "ops"), "default": "parts", "help": "cut attention and feedforward into ops (parts)"},
    ),
    (
        ("--streams",),
        {"nargs": "+", "default": [], "metavar": "NAME", "help": "side inputs that it takes: valid segments ..."},
    ),
    (("--sizes",), {"nargs": "+", "metavar": "NAME=N", "help": "names for numbers: d=768 h=12"}),
]


def print_lowered(spec: Spec, options: argparse.Namespace) -> None:
    """Print or save the program that computes what a model does.

    Raises:
        ConfigError: there is no program for it, or it cannot be written.
    """
    more = {} if spec.part is ProgramModel else {"depth": options.depth}
    if options.streams or (spec.part is ProgramModel and options.depth != "parts"):
        more = {"depth": options.depth, "streams": tuple(options.streams)}
    config = to_config(spec, sizes_from(options.sizes), **more)
    if options.out is None:
        show(config_text(config).rstrip("\n"), config, options.json)
    else:
        target = save_config(config, options.out)
        show(f"written: {target}", {"program": str(target)}, options.json)
