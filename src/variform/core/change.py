"""Changes of specs: dotted overrides, and the structural difference of two specs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from variform.core.fields import Field, field_map, fields_of
from variform.core.plain import field_value, from_plain, is_same
from variform.core.spec import Shared, Spec, shared_specs
from variform.core.text import parse_yaml
from variform.errors import ConfigError, Problem, did_you_mean, join_path


def override(spec: Spec, settings: Iterable[str] | Mapping[str, Any]) -> Spec:
    """Change fields by dotted path: `stacks.0.layers.1.heads=8` (or `stacks[0].layers[1].heads=8`).

    Values are read as YAML. A list index of `*` means every item. A change inside a shared part holds wherever the
    part is used.

    Raises:
        ConfigError: every path that does not exist, with the nearest names, and every value that cannot be read.
    """
    problems: list[Problem] = []
    for setting in settings.items() if isinstance(settings, Mapping) else settings:
        try:
            spec = _changed(spec, *(_split(setting) if isinstance(setting, str) else setting))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return spec


def _changed(spec: Spec, path: str, value: Any) -> Spec:
    steps = re.sub(r"\[([^\]]*)\]", r".\1", path).strip(".").split(".")
    setter = _Setter(value, ".".join(steps), shared_specs(spec))
    spec = setter.set(spec, steps)
    return _everywhere(spec, setter.changed) if setter.changed else spec


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


def _split(text: str) -> tuple[str, Any]:
    path, sign, value = text.partition("=")
    if not sign or not path.strip():
        raise ConfigError(f"an override is written path=value, not {text!r}")
    return path.strip(), parse_yaml(value, f"the override {text!r}")


class _Setter:
    """Sets one value; `changed` collects the new specs of the shared parts on the way, by name."""

    def __init__(self, value: Any, path: str, shared: Mapping[str, Spec]) -> None:
        self.value = value
        self.path = path
        self.shared = shared
        self.changed: dict[str, Spec] = {}

    def set(self, node: Any, steps: list[str], field: Field | None = None) -> Any:
        """`node` with the value at `steps`; `field` is the one that holds the node."""
        if not steps:
            return self._read(field)
        if isinstance(node, Shared):
            if node.name not in self.shared:
                raise ConfigError(f"nothing defines the shared part {node.name!r}", path=self.path)
            self.changed[node.name] = self.set(self.shared[node.name], steps, field)
            return node
        if isinstance(node, Spec):
            return self._in_spec(node, steps)
        if isinstance(node, tuple):
            return self._in_list(node, steps, field)
        raise ConfigError(f"there is nothing below {steps[0]!r}: it is not part of a part or list", path=self.path)

    def _in_spec(self, node: Spec, steps: list[str]) -> Spec:
        head, *rest = steps
        known = field_map(node.part)
        if head not in known:
            hint = did_you_mean(head, known)
            raise ConfigError(f"{node.kind} {node.name!r} has no field {head!r}", path=self.path, hint=hint)
        if not rest:
            return node.replace(**{head: field_value(self.value, known[head], self.path)})
        if node[head] is None:
            raise ConfigError(f"{node.kind} {node.name!r} has nothing in {head!r}", path=self.path)
        return node.replace(**{head: self.set(node[head], rest, known[head])})

    def _in_list(self, node: tuple[Any, ...], steps: list[str], field: Field | None) -> tuple[Any, ...]:
        head, *rest = steps
        if head == "*":
            return tuple(self.set(item, rest, field) for item in node)
        if not re.fullmatch(r"-?\d+", head) or not -len(node) <= int(head) < len(node):
            raise ConfigError(f"there is no item {head!r} in a list of {len(node)}", path=self.path)
        items = list(node)
        items[int(head)] = self.set(items[int(head)], rest, field)
        return tuple(items)

    def _read(self, field: Field | None) -> Any:
        """The value of a list item."""
        is_part = field is not None and field.is_slot and self.value is not None
        return from_plain(self.value, field.kind_names(), self.path) if is_part and field else self.value


def _everywhere(node: Any, changed: Mapping[str, Spec]) -> Any:
    """`node` with new specs for the shared parts named in `changed`."""
    if isinstance(node, Shared):
        if node.spec is None:
            return node
        return Shared(node.name, _everywhere(changed.get(node.name, node.spec), changed))
    if isinstance(node, Spec):
        return Spec(node.part, {key: _everywhere(value, changed) for key, value in node.args.items()})
    if isinstance(node, tuple):
        return tuple(_everywhere(item, changed) for item in node)
    return node


def _diff(a: Any, b: Any, path: str, found: list[Difference]) -> None:
    if isinstance(a, Shared) and isinstance(b, Shared) and a.name == b.name:
        a, b = a.spec, b.spec
    if isinstance(a, Spec) and isinstance(b, Spec) and a.part is b.part:
        for f in fields_of(a.part):
            _diff(a.get(f.name), b.get(f.name), join_path(path, f.name), found)
    elif isinstance(a, tuple) and isinstance(b, tuple):
        for i in range(max(len(a), len(b))):
            _diff(a[i] if i < len(a) else None, b[i] if i < len(b) else None, join_path(path, str(i)), found)
    elif not is_same(a, b):
        found.append(Difference(path, a, b))
