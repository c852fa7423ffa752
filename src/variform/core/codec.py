"""The codec: specs to and from plain data, YAML and JSON; dotted overrides; structural diff.

Plain form of a part: `{"part": NAME, field: value, ...}`, where NAME is the registered name, or `kind/name`
where several kinds share it. A string alone stands for a part without arguments. `{"preset": NAME, ...}` calls a
registered preset. `{"shared": NAME, "of": PART}` marks a shared module; later uses may leave `of` out. In a list,
`{"repeat": N, "of": PART}` stands for N equal items. `"INHERIT"` is the marker. Files are data only: nothing in
them is executed, and they can name registered parts alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from variform.core.fields import Field, field_map, fields_of
from variform.core.inherit import INHERIT, Inherit
from variform.core.registry import lookup, presets
from variform.core.spec import Shared, Spec, default_of
from variform.errors import ConfigError, Problem, did_you_mean

# ---- to plain data ----


def to_dict(spec: Spec, *, full: bool = False) -> dict[str, Any]:
    """A spec as plain data that `from_dict` reads back.

    Args:
        spec: the spec.
        full: write every field, defaults included.

    Raises:
        ConfigError: an argument cannot be written (a module, a callable, a tensor over 64 elements).
    """
    data: dict[str, Any] = {"part": f"{spec.kind}/{spec.name}"}
    for f in fields_of(spec.part):
        if f.name in spec.args:
            value = spec.args[f.name]
            if not full and not f.required and _same(value, default_of(f)):
                continue
        elif full and not f.required:
            value = default_of(f)
        else:
            continue
        data[f.name] = _plain(value, f.name, full)
    return data


def to_yaml(spec: Spec, *, full: bool = False) -> str:
    """A spec as YAML text."""
    return yaml.dump(to_dict(spec, full=full), Dumper=_Dumper, sort_keys=False, width=120)


def to_json(spec: Spec, *, full: bool = False) -> str:
    """A spec as JSON text."""
    return json.dumps(to_dict(spec, full=full), indent=2)


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


# ---- from plain data ----


def from_dict(data: Mapping[str, Any] | str, *, kinds: tuple[str, ...] = ()) -> Spec:
    """Read a spec from plain data.

    Args:
        data: the plain form; see the module's text.
        kinds: the kinds the root may have; any when left out.

    Raises:
        ConfigError: all problems at once, each with its path.
    """
    spec = from_plain(data, kinds)
    if not isinstance(spec, Spec):
        raise ConfigError("the root of a config must be a part, not a shared one")
    return spec


def from_plain(data: Mapping[str, Any] | str, kinds: tuple[str, ...] = ()) -> Spec | Shared | None:
    """Like `from_dict`, for any place of a config: the result may be a `Shared`."""
    problems: list[Problem] = []
    spec = _part(data, kinds, "", problems)
    if problems:
        raise ConfigError(problems)
    return spec


def from_yaml(text: str) -> Spec:
    """Read a spec from YAML 1.2 text (`1e-5` is a number, `no` is a string)."""
    return from_dict(parse_yaml(text))


def from_json(text: str) -> Spec:
    """Read a spec from JSON text."""
    try:
        return from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None


def load(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """Read a spec from a .yaml, .yml or .json file, then apply dotted overrides.

    A file may also hold the model under the key `model`, beside other sections.

    Raises:
        ConfigError: the file is missing or damaged, or its content is wrong.
    """
    data = read_file(path)
    if isinstance(data, Mapping) and "part" not in data and "preset" not in data and "model" in data:
        data = data["model"]
    spec = from_dict(data)
    return override(spec, overrides)


def read_file(path: str | Path) -> Any:
    """Plain data from a .yaml, .yml or .json file.

    Raises:
        ConfigError: missing, unreadable, or not valid YAML or JSON.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [p.name for p in source.parent.glob("*")] if source.parent.is_dir() else []
        raise ConfigError(f"there is no file {str(source)!r}", hint=did_you_mean(source.name, near)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {str(source)!r}: {error}") from None
    if source.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{source}: not valid JSON: {error.msg} (line {error.lineno})") from None
    return parse_yaml(text, str(source))


def parse_yaml(text: str, source: str = "the text") -> Any:
    """Plain data from YAML text: safe loading, YAML 1.2 numbers and booleans, duplicate keys refused."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{source} is not valid YAML: {reason}{place}") from None


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
    raise ConfigError(
        "expected a spec, a mapping, a file path or a built model", value=source, hint="Part.spec(...) makes a spec"
    )


# ---- overrides and diff ----


def override(spec: Spec, settings: Iterable[str] | Mapping[str, Any]) -> Spec:
    """Change fields by dotted path: `stacks.0.layers.1.heads=8` (or `stacks[0].layers[1].heads=8`).

    Values are read as YAML. A list index of `*` means every item.

    Raises:
        ConfigError: a path that does not exist, with the nearest names.
    """
    pairs = settings.items() if isinstance(settings, Mapping) else [_split(text) for text in settings]
    for path, value in pairs:
        steps = re.sub(r"\[([^\]]*)\]", r".\1", path).strip(".").split(".")
        spec = _set(spec, steps, value, path)
    return spec


@dataclass(frozen=True)
class Difference:
    """One place where two specs differ; `None` stands for nothing there."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.path}: {self.after!r}"
        if self.after is None:
            return f"- {self.path}: {self.before!r}"
        return f"~ {self.path}: {self.before!r} -> {self.after!r}"


def diff(before: Spec, after: Spec) -> list[Difference]:
    """Where two specs differ, by path; equal specs give an empty list."""
    found: list[Difference] = []
    _diff(before, after, "", found)
    return found


# ---- internals ----


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    return type(a) is type(b) and bool(a == b)


def _plain(value: Any, path: str, full: bool) -> Any:
    if isinstance(value, Spec):
        return to_dict(value, full=full)
    if isinstance(value, Shared):
        data: dict[str, Any] = {"shared": value.name}
        return data if value.spec is None else {**data, "of": to_dict(value.spec, full=full)}
    if isinstance(value, Inherit):
        return "INHERIT"
    if isinstance(value, torch.Tensor):
        if value.numel() > 64:
            raise ConfigError("a tensor of over 64 elements is not serialisable in a config", path=path)
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{path}.{key}", full) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return _fold([_plain(item, f"{path}.{i}", full) for i, item in enumerate(value)])
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"a {type(value).__name__} is not serialisable", path=path, hint="register it as a part and name it"
    )


def _fold(items: list[Any]) -> list[Any]:
    """Runs of equal parts become one `repeat` entry."""
    folded: list[Any] = []
    index = 0
    while index < len(items):
        run = 1
        while index + run < len(items) and items[index + run] == items[index]:
            run += 1
        is_part = isinstance(items[index], dict) and "part" in items[index]
        if is_part and run > 1:
            folded.append({"repeat": run, "of": items[index]})
        else:
            folded.extend(items[index : index + run])
        index += run
    return folded


def _part(data: Any, kinds: tuple[str, ...], path: str, problems: list[Problem]) -> Spec | Shared | None:
    if isinstance(data, (Spec, Shared)):
        return data
    if isinstance(data, str):
        data = {"part": data}
    if not isinstance(data, Mapping):
        problems.append(Problem(path, "expected a part", data, "write {part: NAME, field: value}"))
        return None
    if "_target_" in data:
        problems.append(Problem(path, "_target_ is not read here: files may name registered parts only"))
        return None
    if "shared" in data:
        return _shared(data, kinds, path, problems)
    if "preset" in data:
        return _preset(data, path, problems)
    name = data.get("part")
    if not isinstance(name, str):
        keys = ", ".join(map(repr, data)) or "nothing"
        hint = did_you_mean("part", map(str, data)) if data else ""
        hint = hint if hint.startswith("did") else "every part is written {part: NAME, field: value}"
        problems.append(Problem(path, f"this part has no name: 'part' is missing among {keys}", hint=hint))
        return None
    try:
        part = lookup(name, kinds)
    except ConfigError as error:
        problems.append(Problem(_join(path, "part"), error.problems[0].message, hint=error.problems[0].hint))
        return None
    known = field_map(part)
    args: dict[str, Any] = {}
    for key, value in data.items():
        if key == "part":
            continue
        here = _join(path, str(key))
        if key not in known:
            message = f"{part.kind} {part.name!r} has no field {str(key)!r}"
            problems.append(Problem(here, message, hint=did_you_mean(str(key), known)))
            continue
        args[key] = _value(value, known[key], here, problems)
    return Spec(part, args)


def _value(value: Any, field: Field, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, str) and value == "INHERIT":
        return INHERIT
    if not field.is_slot:
        if isinstance(value, Mapping) and set(value) == {"tensor", "dtype"}:
            return torch.tensor(value["tensor"], dtype=getattr(torch, str(value["dtype"])))
        return value
    if value is None:
        return None
    if not field.many:
        return _part(value, field.kind_names(), path, problems)
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        problems.append(Problem(path, "expected a list of parts", value))
        return ()
    items: list[Any] = []
    for entry in value:
        here = f"{path}.{len(items)}"
        if isinstance(entry, Mapping) and "repeat" in entry:
            count = entry.get("repeat")
            if set(entry) != {"repeat", "of"} or not isinstance(count, int) or isinstance(count, bool) or count < 0:
                problems.append(Problem(here, "a repeat is written {repeat: N, of: PART}", dict(entry)))
                continue
            items.extend([_part(entry["of"], field.kind_names(), here, problems)] * count)
        else:
            items.append(_part(entry, field.kind_names(), here, problems))
    return tuple(items)


def _shared(data: Mapping[str, Any], kinds: tuple[str, ...], path: str, problems: list[Problem]) -> Shared | None:
    extra = [key for key in data if key not in ("shared", "of")]
    if extra:
        problems.append(Problem(_join(path, str(extra[0])), "a shared part has only the keys 'shared' and 'of'"))
    inner = _part(data["of"], kinds, _join(path, "of"), problems) if "of" in data else None
    return Shared(str(data["shared"]), inner if isinstance(inner, Spec) else None)


def _preset(data: Mapping[str, Any], path: str, problems: list[Problem]) -> Spec | None:
    known = presets()
    name = str(data["preset"])
    if name not in known:
        problems.append(Problem(_join(path, "preset"), f"there is no preset {name!r}", hint=did_you_mean(name, known)))
        return None
    arguments = {str(key): value for key, value in data.items() if key != "preset"}
    try:
        return known[name](**arguments)
    except ConfigError as error:
        problems.extend(Problem(_join(path, p.path), p.message, p.value, p.hint) for p in error.problems)
        return None


def _split(text: str) -> tuple[str, Any]:
    path, sign, value = text.partition("=")
    if not sign or not path.strip():
        raise ConfigError(f"an override is written path=value, not {text!r}")
    return path.strip(), parse_yaml(value, f"the override {text!r}")


def _set(node: Any, steps: list[str], value: Any, path: str) -> Any:
    head, *rest = steps
    if isinstance(node, Shared):
        if node.spec is None:
            raise ConfigError(f"the shared part {node.name!r} is described elsewhere", path=path)
        return Shared(node.name, _set(node.spec, steps, value, path))
    if isinstance(node, Spec):
        known = field_map(node.part)
        if head not in known:
            hint = did_you_mean(head, known)
            raise ConfigError(f"{node.kind} {node.name!r} has no field {head!r}", path=path, hint=hint)
        if rest:
            return node.replace(**{head: _set(node[head], rest, value, path)})
        problems: list[Problem] = []
        new = _value(value, known[head], path, problems)
        if problems:
            raise ConfigError(problems)
        return node.replace(**{head: new})
    if isinstance(node, tuple):
        if head == "*":
            return tuple(_set(item, rest, value, path) if rest else value for item in node)
        if not re.fullmatch(r"-?\d+", head) or not -len(node) <= int(head) < len(node):
            raise ConfigError(f"there is no item {head!r} in a list of {len(node)}", path=path)
        items = list(node)
        items[int(head)] = _set(items[int(head)], rest, value, path) if rest else value
        return tuple(items)
    raise ConfigError(f"there is nothing below {head!r}: it is not part of a part or list", path=path)


def _diff(a: Any, b: Any, path: str, found: list[Difference]) -> None:
    if isinstance(a, Shared) and isinstance(b, Shared) and a.name == b.name:
        a, b = a.spec, b.spec
    if isinstance(a, Spec) and isinstance(b, Spec) and a.part is b.part:
        for f in fields_of(a.part):
            _diff(a.get(f.name), b.get(f.name), _join(path, f.name), found)
    elif isinstance(a, tuple) and isinstance(b, tuple):
        for i in range(max(len(a), len(b))):
            _diff(a[i] if i < len(a) else None, b[i] if i < len(b) else None, _join(path, str(i)), found)
    elif not _same(a, b) and not (a is None and b is None):
        found.append(Difference(path, a, b))


def _join(path: str, step: str) -> str:
    return f"{path}.{step}" if path and step else path or step


class _Loader(yaml.SafeLoader):
    """Safe YAML with the 1.2 core schema's numbers and booleans."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Safe YAML without anchors, short lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_CORE = {
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:int": (r"^(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:merge": (r"^(?:<<)$", "<"),
}
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _CORE.items():
        _class.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def _int(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
