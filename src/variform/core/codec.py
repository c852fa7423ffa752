"""The codec: specs to and from plain data, YAML and JSON text, and files; the forms are told in `plain`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from variform.core.change import Difference, diff, override
from variform.core.formats import reader_of
from variform.core.part import Part
from variform.core.plain import from_dict, from_plain, to_dict
from variform.core.spec import Shared, Spec
from variform.core.text import dump_yaml, parse_json, parse_yaml, read_file
from variform.errors import ConfigError

__all__ = [
    "Difference",
    "as_spec",
    "diff",
    "from_dict",
    "from_json",
    "from_plain",
    "from_yaml",
    "load",
    "override",
    "parse_yaml",
    "read_file",
    "save",
    "to_dict",
    "to_json",
    "to_yaml",
]


def to_yaml(spec: Spec, *, full: bool = False) -> str:
    """A spec as YAML text."""
    return dump_yaml(to_dict(spec, full=full))


def to_json(spec: Spec, *, full: bool = False) -> str:
    """A spec as JSON text."""
    return json.dumps(to_dict(spec, full=full), indent=2)


def from_yaml(text: str) -> Spec:
    """Read a spec from YAML 1.2 text (`1e-5` is a number, `no` is a string)."""
    return from_dict(parse_yaml(text))


def from_json(text: str) -> Spec:
    """Read a spec from JSON text."""
    return from_dict(parse_json(text))


def save(spec: Spec, path: str | Path, *, full: bool = False) -> Path:
    """Write a spec to a .yaml, .yml or .json file.

    Raises:
        ConfigError: unknown ending, a folder that cannot be written, or an argument that cannot be saved.
    """
    target = Path(path)
    if target.suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"cannot tell the format of {str(target)!r}", hint="end the name in .yaml or .json")
    text = to_json(spec, full=full) if target.suffix == ".json" else to_yaml(spec, full=full)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {str(target)!r}: {error.strerror}") from None
    return target


def load(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """Read a spec from a .yaml, .yml or .json file, then apply dotted overrides.

    A file may also hold the model under the key `model`, beside other sections.

    Raises:
        ConfigError: the file is missing or damaged, or its content is wrong.
    """
    data = read_file(path)
    if isinstance(data, Mapping) and "part" not in data and "preset" not in data and "model" in data:
        data = data["model"]
    reader = reader_of(data)
    return override(from_dict(data), overrides) if reader is None else reader(data, overrides)


def as_spec(source: Any) -> Spec:
    """A spec from whatever describes one: a Spec, a mapping, a path, or a built part."""
    if isinstance(source, Spec):
        return source
    if isinstance(source, Shared):
        if source.spec is None:
            raise ConfigError(f"Shared({source.name!r}) carries no spec")
        return source.spec
    if isinstance(source, Mapping):
        return from_dict(source)
    if isinstance(source, (str, Path)):
        return load(source)
    spec = getattr(source, "spec", None)
    if isinstance(spec, Spec):
        return spec
    hint = "Part.spec(...) makes a spec"
    if isinstance(source, type) and issubclass(source, Part):
        hint = f"write {source.__name__}.spec(...)"
    raise ConfigError("expected a spec, a mapping, a file path or a built model", value=source, hint=hint)
