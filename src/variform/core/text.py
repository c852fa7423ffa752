"""Text to and from plain data: YAML 1.2 and JSON, safe and strict."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from variform.errors import ConfigError, did_you_mean


def read_file(path: str | Path) -> Any:
    """Plain data from a .json file, or from a YAML file of any other ending.

    Raises:
        ConfigError: missing, unreadable, or not valid YAML or JSON.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [p.name for p in source.parent.glob("*")] if source.parent.is_dir() else []
        raise ConfigError(f"there is no file {str(source)!r}", hint=did_you_mean(source.name, near)) from None
    except OSError as error:
        raise ConfigError(f"cannot read {str(source)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {str(source)!r}: it is not UTF-8 text ({error.reason})") from None
    return parse_json(text, str(source)) if source.suffix == ".json" else parse_yaml(text, str(source))


def parse_json(text: str, source: str = "the text") -> Any:
    """Plain data from JSON text; duplicate keys are refused.

    Raises:
        ConfigError: not valid JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        place = f"(line {error.lineno}, column {error.colno})"
        raise ConfigError(f"{source} is not valid JSON: {error.msg} {place}") from None


def parse_yaml(text: str, source: str = "the text") -> Any:
    """Plain data from YAML text: safe loading, YAML 1.2 numbers and booleans, duplicate keys refused.

    Raises:
        ConfigError: not valid YAML, or it asks for more than data.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{source} is not valid YAML: {reason}{place}") from None


def dump_yaml(data: Any) -> str:
    """Plain data as YAML text that `parse_yaml` reads back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"the text is not a valid config: the key {twice!r} stands twice")
    return data


class _Loader(yaml.SafeLoader):
    """Safe YAML with the 1.2 core schema's numbers and booleans."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _problem("a key must be a plain value", key_node)
            if key in seen:
                raise _problem(f"the key {key!r} stands twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Safe YAML without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _problem(text: str, node: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


_MERGE = "tag:yaml.org,2002:merge"
_CORE = {
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:int": (r"^(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    _MERGE: (r"^(?:<<)$", "<"),
}
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _CORE.items():
        _class.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def _int(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
