"""Spec: a part that is not built yet: its class and the arguments given, frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from variform.core.fields import Field, field_map, fields_of
from variform.core.inherit import Inherit
from variform.core.part import Default, Part
from variform.core.registry import lookup


class Spec:
    """A part's class and the arguments that were given; immutable, hashable on its canonical form.

    Two specs are equal when they describe the same part: a default written out equals one left out, a list equals
    a tuple. Arguments are read with `spec["heads"]` (defaults included); `spec.args` holds what was given.

    Args:
        part: the part class.
        args: its constructor arguments: values, specs, `Shared`, lists of them, or `INHERIT`.
    """

    __slots__ = ("_key", "args", "part")
    part: type[Part]
    args: Mapping[str, Any]
    _key: tuple[Any, ...] | None

    def __init__(self, part: type[Part], args: Mapping[str, Any]) -> None:
        object.__setattr__(self, "part", part)
        known = field_map(part)
        frozen = {key: _as_part(known.get(key), freeze(value)) for key, value in args.items()}
        object.__setattr__(self, "args", FrozenDict(frozen))
        object.__setattr__(self, "_key", None)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Spec is frozen; use spec.replace(...) for a changed copy")

    def __getitem__(self, field: str) -> Any:
        if field in self.args:
            return self.args[field]
        known = field_map(self.part)
        if field not in known:
            raise KeyError(field)
        return default_of(known[field])

    def get(self, field: str, default: Any = None) -> Any:
        """The field's value, or `default` when the part has no such field."""
        try:
            return self[field]
        except KeyError:
            return default

    @property
    def kind(self) -> str:
        """The kind of the part."""
        return self.part.kind

    @property
    def name(self) -> str:
        """The registered name of the part."""
        return self.part.name or self.part.__name__

    def replace(self, **changes: Any) -> Spec:
        """A copy with some arguments changed."""
        return Spec(self.part, {**self.args, **changes})

    def leaves(self) -> dict[str, Any]:
        """The plain (non-slot) values by field, defaults included."""
        return {f.name: self[f.name] for f in fields_of(self.part) if not f.is_slot and not f.required}

    def children(self) -> Iterator[tuple[str, int | None, Spec | Shared]]:
        """The child specs as (field, index or None, child), in field order."""
        for f in fields_of(self.part):
            if not f.is_slot:
                continue
            value = self.get(f.name)
            if isinstance(value, (Spec, Shared)):
                yield f.name, None, value
            elif isinstance(value, tuple):
                for index, child in enumerate(value):
                    if isinstance(child, (Spec, Shared)):
                        yield f.name, index, child

    def first(self, name: str) -> int | None:
        """The first size of this name in the tree; None where nothing has one."""
        values = (inner.get(name) for _, inner in self.walk())
        return next((value for value in values if isinstance(value, int)), None)

    def walk(self, path: str = "") -> Iterator[tuple[str, Spec]]:
        """All specs of the tree with their dotted paths, the root first; a shared spec at each place it is used."""
        yield path, self
        for field, index, child in self.children():
            step = field if index is None else f"{field}.{index}"
            spec = child.spec if isinstance(child, Shared) else child
            if isinstance(spec, Spec):  # not None, and not a place that could not be read
                yield from spec.walk(f"{path}.{step}" if path else step)

    def canonical_key(self) -> tuple[Any, ...]:
        """A hashable form in which every default is written out."""
        key = self._key
        if key is None:
            values = []
            known = field_map(self.part)
            for name in sorted({*known, *self.args}):
                value = self.args[name] if name in self.args else default_of(known[name])
                values.append((name, _key(value)))
            key = (self.part.__module__, self.part.__qualname__, tuple(values))
            object.__setattr__(self, "_key", key)
        return key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.canonical_key() == other.canonical_key()

    def __hash__(self) -> int:
        return hash(self.canonical_key())

    def __repr__(self) -> str:
        args = ", ".join(f"{key}={value!r}" for key, value in self.args.items())
        return f"{self.part.__name__}.spec({args})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Spec, (self.part, dict(self.args)))

    def __copy__(self) -> Spec:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Spec:
        return self


class Shared:
    """Marks one module that is used in several places: every `Shared` of one name is the same module.

    The spec may be left out where the name is used again. All uses must resolve to the same facts.

    Args:
        name: what ties the places together.
        spec: the part; at least one use of the name must give it.
    """

    __slots__ = ("name", "spec")
    name: str
    spec: Spec | None

    def __init__(self, name: str, spec: Spec | None = None) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "spec", spec)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Shared is frozen")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shared) and (self.name, self.spec) == (other.name, other.spec)

    def __hash__(self) -> int:
        return hash((self.name, self.spec))

    def __repr__(self) -> str:
        return f"Shared({self.name!r})" if self.spec is None else f"Shared({self.name!r}, {self.spec!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Shared, (self.name, self.spec))

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self


class FrozenDict(dict[str, Any]):
    """A dict that refuses changes; hashable when its values are."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("the arguments of a Spec are frozen; use spec.replace(...)")

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # a dict is unhashable, a frozen one need not be
        return hash(_key(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenDict, (dict(self),))

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenDict:
        return self


def shared_specs(spec: Spec) -> dict[str, Spec]:
    """The descriptions of the shared parts of a tree by name: the first of each name."""
    found: dict[str, Spec] = {}

    def scan(value: Any) -> None:
        if isinstance(value, Shared):
            if value.spec is not None:
                found.setdefault(value.name, value.spec)
                scan(value.spec)
        elif isinstance(value, Spec):
            for item in value.args.values():
                scan(item)
        elif isinstance(value, tuple):
            for item in value:
                scan(item)

    scan(spec)
    return found


def apart(spec: Spec, scope: str) -> Spec:
    """The same with the names of all shared parts put behind `scope`: beside another tree it shares nothing with it."""

    def renamed(value: Any) -> Any:
        if isinstance(value, Shared):
            return Shared(scope + value.name, None if value.spec is None else renamed(value.spec))
        if isinstance(value, Spec):
            return Spec(value.part, {name: renamed(item) for name, item in value.args.items()})
        return tuple(map(renamed, value)) if isinstance(value, tuple) else value

    found: Spec = renamed(spec)
    return found


def described(value: Any) -> Any:
    """A slot's content as descriptions: what is marked as shared stands as its spec."""
    if isinstance(value, tuple):
        return tuple(described(item) for item in value)
    return value.spec if isinstance(value, Shared) else value


def freeze(value: Any) -> Any:
    """A deep, read-only copy of plain containers; specs, tensors, modules and callables are kept as they are."""
    if isinstance(value, FrozenDict):
        return value
    if isinstance(value, Mapping):
        return FrozenDict({str(key): freeze(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return tuple(freeze(item) for item in value)
    return value


def _as_part(field: Field | None, value: Any) -> Any:
    """In a slot, plain data (`"rms_norm"`, `{"part": ...}`) stands for the spec it describes."""
    if field is None or not field.is_slot:
        return value
    if isinstance(value, tuple):
        return tuple(_as_part(field, item) for item in value)
    if not isinstance(value, (str, Mapping)):
        return value
    from variform.core.plain import from_plain  # the codec needs Spec; a slot given as plain data needs the codec

    return from_plain(value, field.kind_names())


def default_of(field: Field) -> Any:
    """A field's default as a spec argument: slot defaults become specs; a required field is INHERIT-less missing."""
    if isinstance(field.default, Default):
        return Spec(lookup(field.default.name, field.kind_names()), dict(field.default.args))
    if field.required:
        return MISSING
    return freeze(field.default)


class _Missing:
    def __repr__(self) -> str:
        return "<missing>"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING = _Missing()
"""Stands in canonical forms for a required argument that was not given."""


class _Broken:
    def __repr__(self) -> str:
        return "<broken>"

    def __reduce__(self) -> str:
        return "BROKEN"


BROKEN = _Broken()
"""Stands where data could not be read: the mistake is reported, and resolution passes the place over."""


def _key(value: Any) -> Any:
    if isinstance(value, Spec):
        return ("spec", value.canonical_key())
    if isinstance(value, Shared):
        return ("shared", value.name, _key(value.spec))
    if isinstance(value, Mapping):
        return ("map", tuple(sorted((key, _key(item)) for key, item in value.items())))
    if isinstance(value, (list, tuple)):
        return ("seq", tuple(_key(item) for item in value))
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous()
        return ("tensor", str(data.dtype), tuple(data.shape), str(data.tolist()))
    if isinstance(value, Inherit) or value is MISSING:
        return ("marker", repr(value))
    if isinstance(value, bool):
        return ("bool", value)
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    return value
