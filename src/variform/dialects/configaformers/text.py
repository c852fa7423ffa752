"""A config as text: YAML, JSON, or the Python lists of dicts that build the model."""

from __future__ import annotations

import json
import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from variform.core.text import dump_yaml
from variform.dialects.configaformers.errors import ConfigaformersError
from variform.errors import Problem

ENDINGS = (".yaml", ".yml", ".json", ".py")
_ARGUMENTS = ("blocks", "input_streams", "output_streams", "sizes")
_WIDTH = 120


def to_python(config: Mapping[str, Any]) -> str:
    """The Python statements that build the model of a config: `blocks`, `input_streams`, `model`.

    Raises:
        ConfigaformersError: the config holds fields of the program, which `ConfigaFormer` has no argument for.
    """
    further = [key for key in config if key not in _ARGUMENTS]
    if further:
        hint = "save it as YAML"
        raise ConfigaformersError([Problem(key, "ConfigaFormer has no such argument", hint=hint) for key in further])
    named = {key: value for key, value in config.items() if key != "blocks"}
    lines = ["from variform.dialects.configaformers.model_builder import ConfigaFormer", "", "blocks = ["]
    for block in config["blocks"]:
        lines += ["    {", "        'config': ["]
        lines += [_indented(module, 12) for module in block["config"]]
        lines += ["        ],"]
        lines += [f"        {key!r}: {_text(value)}," for key, value in block.items() if key != "config"]
        lines += ["    },"]
    lines += ["]", *(f"{key} = {_text(value)}" for key, value in named.items())]
    arguments = ", ".join(f"{key}={key}" for key in ("blocks", *named))
    return "\n".join([*lines, "", f"model = ConfigaFormer({arguments})", ""])


def config_text(config: Mapping[str, Any], ending: str = ".yaml") -> str:
    """A config as the text of a file with this ending."""
    if ending == ".json":
        return json.dumps(config, indent=2) + "\n"
    return to_python(config) if ending == ".py" else dump_yaml(dict(config))


def save_config(config: Mapping[str, Any], path: str | Path) -> Path:
    """Write a config to a .yaml, .yml, .json or .py file.

    Raises:
        ConfigaformersError: another ending, or a folder that cannot be written.
    """
    target = Path(path)
    if target.suffix not in ENDINGS:
        problem = Problem(
            "", "cannot tell the format of the file", str(target), f"end its name in {', '.join(ENDINGS)}"
        )
        raise ConfigaformersError([problem])
    try:
        target.write_text(config_text(config, target.suffix), encoding="utf-8")
    except OSError as error:
        raise ConfigaformersError([Problem("", f"cannot write {str(target)!r}: {error.strerror}")]) from None
    return target


def _indented(module: Mapping[str, Any], depth: int) -> str:
    text = _text(module, _WIDTH - depth - 1)
    return "\n".join(" " * depth + line for line in f"{text},".splitlines())


def _text(value: Any, width: int = _WIDTH) -> str:
    return pprint.pformat(value, width=width, sort_dicts=False, compact=True)
