"""Specs to and from plain data (dicts, lists, numbers, strings).

Plain form of a part: `{"part": NAME, field: value, ...}`, where NAME is the registered name, or `kind/name`
where several kinds share it. A string alone stands for a part without arguments. `{"preset": NAME, ...}` calls a
registered preset. `{"shared": NAME, "of": PART}` marks a shared module; later uses may leave `of` out. In a list,
`{"repeat": N, "of": PART}` stands for N equal items. `"INHERIT"` is the marker, `{"inherit": VALUE}` the one with a
fallback. Data can name registered parts alone; nothing in it is executed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from variform.core.fields import MOST_PARTS, Field, field_map, fields_of
from variform.core.formats import reader_of
from variform.core.inherit import INHERIT, Inherit, inherit
from variform.core.registry import lookup, parts, presets
from variform.core.spec import BROKEN, Shared, Spec, default_of
from variform.errors import ConfigError, Problem, did_you_mean, join_path

MAX_INLINE = 64
"""Elements of the largest tensor that a config holds inline."""


def to_dict(spec: Spec, *, full: bool = False) -> dict[str, Any]:
    """A spec as plain data that `from_dict` reads back.

    Args:
        spec: the spec.
        full: write every field, defaults included.

    Raises:
        ConfigError: an argument cannot be written (a module, a callable, a tensor over 64 elements), or a part is
            not registered, so that its name could not be read back.
    """
    return _part_data(spec, "", full)


def from_dict(data: Mapping[str, Any] | str, *, kinds: tuple[str, ...] = ()) -> Spec:
    """Read a spec from plain data.

    Args:
        data: the plain form, see the module's text, or a form that a dialect has registered (`core.formats`).
        kinds: the kinds the root may have; any when left out.

    Raises:
        ConfigError: all problems at once, each with its path.
    """
    reader = reader_of(data)
    if reader is not None and isinstance(data, Mapping):
        return reader(data, ())
    spec = from_plain(data, kinds)
    if not isinstance(spec, Spec):
        raise ConfigError("the root of a config must be a part, not a shared one")
    return spec


def from_plain(data: Any, kinds: tuple[str, ...] = (), path: str = "") -> Spec | Shared | None:
    """Like `from_dict`, for any place of a config: the result may be a `Shared`."""
    problems: list[Problem] = []
    spec: Spec | Shared | None = _part(data, kinds, path, problems)
    if problems:
        raise ConfigError([*problems, *_further(spec, path)])
    return spec


def field_value(value: Any, field: Field, path: str) -> Any:
    """Read the value of one field from plain data."""
    problems: list[Problem] = []
    read = _value(value, field, path, problems)
    if problems:
        raise ConfigError(problems)
    return read


def is_same(a: Any, b: Any) -> bool:
    """Whether two arguments are the same; tensors compare by identity."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    return type(a) is type(b) and bool(a == b)


def _part_data(spec: Spec, path: str, full: bool) -> dict[str, Any]:
    if parts().get((spec.kind, spec.name)) is not spec.part:
        hint = f"register it: @register({spec.part.__name__.lower()!r})"
        raise ConfigError(f"{spec.part.__name__} is not registered, so its name cannot be saved", path=path, hint=hint)
    data: dict[str, Any] = {"part": f"{spec.kind}/{spec.name}"}
    for f in fields_of(spec.part):
        if f.name in spec.args:
            value = spec.args[f.name]
            if not full and not f.required and is_same(value, default_of(f)):
                continue
        elif full and not f.required:
            value = default_of(f)
        else:
            continue
        data[f.name] = _plain(value, join_path(path, f.name), full)
    return data


def _plain(value: Any, path: str, full: bool) -> Any:
    if isinstance(value, Spec):
        return _part_data(value, path, full)
    if isinstance(value, Shared):
        data: dict[str, Any] = {"shared": value.name}
        return data if value.spec is None else {**data, "of": _part_data(value.spec, path, full)}
    if isinstance(value, Inherit):
        return {"inherit": _plain(value.fallback, path, full)} if value.has_fallback else "INHERIT"
    if isinstance(value, torch.Tensor):
        if value.numel() > MAX_INLINE:
            raise ConfigError(f"a tensor of over {MAX_INLINE} elements is not serialisable in a config", path=path)
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{path}.{key}", full) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return _list_data(value, path, full)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"a {type(value).__name__} is not serialisable", path=path, hint="register it as a part and name it"
    )


def _list_data(items: Sequence[Any], path: str, full: bool) -> list[Any]:
    """Runs of equal parts become one `repeat` entry."""
    data: list[Any] = []
    index = 0
    while index < len(items):
        run = 1
        if isinstance(items[index], Spec):
            while index + run < len(items) and items[index + run] == items[index]:
                run += 1
        one = _plain(items[index], f"{path}.{index}", full)
        data.append(one if run == 1 else {"repeat": run, "of": one})
        index += run
    return data


def _further(spec: Any, path: str) -> list[Problem]:
    """What resolution finds in the places that could be read, so that all mistakes are reported at once."""
    from variform.core.resolve import examine  # resolution needs the codec, which needs it for its errors alone

    spec = spec.spec if isinstance(spec, Shared) else spec
    return [p.below(path) for p in examine(spec, sure=False)[1]] if isinstance(spec, Spec) else []


def _part(data: Any, kinds: tuple[str, ...], path: str, problems: list[Problem]) -> Any:
    """A spec, a shared one, or `BROKEN` after reporting why there is none."""
    if isinstance(data, (Spec, Shared)):
        return data
    if isinstance(data, str):
        data = {"part": data}
    if not isinstance(data, Mapping):
        problems.append(Problem(path, "expected a part", data, "write {part: NAME, field: value}"))
        return BROKEN
    if "_target_" in data:
        problems.append(Problem(path, "_target_ is not read here: files may name registered parts only"))
        return BROKEN
    if "shared" in data:
        return _shared(data, kinds, path, problems)
    if "preset" in data:
        return _preset(data, path, problems)
    name = data.get("part")
    if not isinstance(name, str):
        problems.append(_unnamed(data, path))
        return BROKEN
    try:
        part = lookup(name, kinds)
    except ConfigError as error:
        problems.append(Problem(join_path(path, "part"), error.problems[0].message, hint=error.hint))
        return BROKEN
    known = field_map(part)
    args: dict[str, Any] = {}
    for key, value in data.items():
        if key == "part":
            continue
        here = join_path(path, str(key))
        if key in known:
            args[key] = _value(value, known[key], here, problems)
        else:
            message = f"{part.kind} {part.name!r} has no field {str(key)!r}"
            problems.append(Problem(here, message, hint=did_you_mean(str(key), known)))
            # One of the fields that are not there may be the one that is misspelt.
            args.update({f.name: BROKEN for f in known.values() if f.required and f.name not in data})
    return Spec(part, args)


def _unnamed(data: Mapping[Any, Any], path: str) -> Problem:
    if "part" in data:
        return Problem(join_path(path, "part"), "the name of a part is text", data["part"])
    keys = [str(key) for key in data]
    near = difflib.get_close_matches("part", keys, n=1)
    hint = f"did you mean 'part' by {near[0]!r}?" if near else "every part is written {part: NAME, field: value}"
    shown = ", ".join(map(repr, keys)) or "nothing"
    return Problem(path, f"this part has no name: 'part' is missing among {shown}", hint=hint)


def _value(value: Any, field: Field, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, str) and value == "INHERIT":
        return INHERIT
    if not field.is_slot:
        if isinstance(value, Mapping) and set(value) == {"inherit"}:
            return inherit(value["inherit"])
        return _tensor(value, path, problems) if _is_tensor(value) else value
    if value is None:
        return None
    if not field.many:
        return _part(value, field.kind_names(), path, problems)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        problems.append(Problem(path, "expected a list of parts", value))
        return BROKEN
    return tuple(_items(value, field.kind_names(), path, problems))


def _items(value: Iterable[Any], kinds: tuple[str, ...], path: str, problems: list[Problem]) -> list[Any]:
    items: list[Any] = []
    for entry in value:
        here = f"{path}.{len(items)}"
        if isinstance(entry, Mapping) and "repeat" in entry:
            count = entry["repeat"]
            if set(entry) != {"repeat", "of"} or not isinstance(count, int) or isinstance(count, bool) or count < 0:
                problems.append(Problem(here, "a repeat is written {repeat: N, of: PART}", dict(entry)))
                items.append(BROKEN)
                continue
            if len(items) + count > MOST_PARTS:
                problems.append(Problem(here, f"a list holds at most {MOST_PARTS} parts", count))
                count = 1
            items.extend([_part(entry["of"], kinds, here, problems)] * count)
        else:
            items.append(_part(entry, kinds, here, problems))
    return items


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"tensor", "dtype"}


def _tensor(data: Mapping[str, Any], path: str, problems: list[Problem]) -> Any:
    dtype = getattr(torch, str(data["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        problems.append(Problem(join_path(path, "dtype"), "there is no such tensor type", data["dtype"]))
        return BROKEN
    try:
        return torch.tensor(data["tensor"], dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        problems.append(Problem(join_path(path, "tensor"), f"these numbers make no tensor: {error}", data["tensor"]))
        return BROKEN


def _shared(data: Mapping[str, Any], kinds: tuple[str, ...], path: str, problems: list[Problem]) -> Any:
    extra = [key for key in data if key not in ("shared", "of")]
    if extra:
        problems.append(Problem(join_path(path, str(extra[0])), "a shared part has only the keys 'shared' and 'of'"))
    if not isinstance(data["shared"], str):
        problems.append(Problem(join_path(path, "shared"), "the name of a shared part is text", data["shared"]))
        return BROKEN
    inner = _part(data["of"], kinds, join_path(path, "of"), problems) if "of" in data else None
    if isinstance(inner, Shared):
        problems.append(Problem(join_path(path, "of"), "a shared part cannot be another shared part"))
        return BROKEN
    return Shared(data["shared"], inner)


def _preset(data: Mapping[str, Any], path: str, problems: list[Problem]) -> Any:
    known = presets()
    name = str(data["preset"])
    if name not in known:
        hint = did_you_mean(name, known)
        problems.append(Problem(join_path(path, "preset"), f"there is no preset {name!r}", hint=hint))
        return BROKEN
    arguments = {str(key): value for key, value in data.items() if key != "preset"}
    try:
        return known[name](**arguments)
    except ConfigError as error:
        problems.extend(p.below(path) for p in error.problems)
        return BROKEN
