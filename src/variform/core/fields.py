"""Fields: what a part's constructor says about itself, read once from its signature and docstring."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

import pydantic
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from torch import nn

from variform.core.inherit import Inherit
from variform.core.part import Default, Part

REQUIRED = inspect.Parameter.empty

MOST_PARTS = 10_000
"""Parts in the longest list: more is a mistake, and would take minutes to find out."""

Depth = Annotated[int, pydantic.Field(gt=0, le=MOST_PARTS)]
"""How many layers."""


@dataclass(frozen=True)
class Field:
    """One constructor field of a part.

    Args:
        name: the keyword.
        annotation: its type, `Annotated` constraints included.
        default: the default, an `Inherit`, a `Default` (slots), or `REQUIRED`.
        doc: its line in the docstring's `Args:` section.
        kinds: the abstract part classes a slot accepts; empty for a plain value.
        many: the slot holds a list of parts.
        optional: None is allowed.
    """

    name: str
    annotation: Any
    default: Any
    doc: str
    kinds: tuple[type[Part], ...]
    many: bool
    optional: bool

    @property
    def is_slot(self) -> bool:
        """Whether the field holds parts rather than a value."""
        return bool(self.kinds)

    @property
    def required(self) -> bool:
        """Whether the field has no default at all."""
        return self.default is REQUIRED

    @property
    def inherits(self) -> bool:
        """Whether the default is taken from the surroundings."""
        return isinstance(self.default, Inherit)

    def kind_names(self) -> tuple[str, ...]:
        """The names of the kinds a slot accepts."""
        return tuple(kind.kind for kind in self.kinds)

    def type_text(self) -> str:
        """The type as a reader would write it."""
        if self.is_slot:
            text = " | ".join(self.kind_names())
            text = f"list of {text}" if self.many else text
            return f"{text} | None" if self.optional else text
        return _type_text(self.annotation)


@functools.cache
def fields_of(part: type[Part]) -> tuple[Field, ...]:
    """The fields of a part class, in constructor order."""
    init = part.__init__
    if init is nn.Module.__init__:  # a part without a constructor has no fields
        return ()
    hints = typing.get_type_hints(init, include_extras=True)
    docs = _argument_docs(part)
    found = []
    for name, parameter in list(inspect.signature(init).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{part.__name__}.__init__ may not take *args or **kwargs: a part's fields are explicit")
        kinds, many, optional = _slot(hints[name])
        found.append(Field(name, hints[name], parameter.default, docs.get(name, ""), kinds, many, optional))
    return tuple(found)


@functools.cache
def field_map(part: type[Part]) -> dict[str, Field]:
    """The fields of a part class by name."""
    return {f.name: f for f in fields_of(part)}


def check_value(field: Field, value: Any) -> tuple[Any, str | None]:
    """Check a plain value against a field's type.

    Returns the value (a tuple where a list was given, a float where an int fits) and a message when it is wrong.
    """
    if value is None and field.optional:
        return None, None
    return check_type(field.annotation, value)


def check_type(annotation: Any, value: Any) -> tuple[Any, str | None]:
    """Check a value against a type; returns it (converted where nothing is lost) and a message when it is wrong."""
    try:
        return _adapter(annotation).validate_python(value), None
    except ValidationError as error:
        return value, _readable(annotation, error)


INHERIT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"const": "INHERIT"},
        {"type": "object", "properties": {"inherit": {}}, "required": ["inherit"], "additionalProperties": False},
    ]
}
"""How a file says "take it from the surroundings": `INHERIT`, or `{inherit: fallback}`."""


def field_schema(field: Field) -> dict[str, Any]:
    """The JSON Schema of a plain field; slots are referred to by kind."""
    if field.is_slot:
        one: dict[str, Any] = {"$ref": f"#/$defs/{'|'.join(field.kind_names())}"}
        schema: dict[str, Any] = {"type": "array", "items": one} if field.many else one
        if field.optional:
            schema = {"anyOf": [schema, {"type": "null"}]}
    else:
        schema = {"anyOf": [type_schema(field.annotation), INHERIT_SCHEMA]}
    if field.doc:
        schema = {**schema, "description": field.doc}
    if isinstance(field.default, Inherit):
        schema = {**schema, "x-inherit": True}
    elif isinstance(field.default, Default):
        schema = {**schema, "default": field.default.name}
    elif field.default is not REQUIRED and _is_json(field.default):
        schema = {**schema, "default": field.default}
    return schema


class _Writable(GenerateJsonSchema):
    """Objects that no file can hold, such as modules, are not among what may be written."""

    def is_instance_schema(self, schema: Any) -> JsonSchemaValue:
        """Nothing."""
        return {"not": {}}


def type_schema(annotation: Any) -> dict[str, Any]:
    """The JSON Schema of a plain type."""
    return _adapter(annotation).json_schema(schema_generator=_Writable)


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(
            annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
        )
    except PydanticUserError:
        return TypeAdapter(annotation)


_adapter(int)  # pydantic looks for its plugins when the first one is made: on import, not in the first check


def _readable(annotation: Any, error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "literal_error":
        return f"expected {first['ctx']['expected']}"
    text = str(first["msg"])
    text = text[0].lower() + text[1:]
    place = ".".join(str(step) for step in first["loc"] if isinstance(step, int))
    where = f" at index {place}" if place else ""
    return f"{text}{where}; the field is {_type_text(annotation)}"


def _slot(annotation: Any) -> tuple[tuple[type[Part], ...], bool, bool]:
    """Which kinds an annotation accepts, whether it is a list of them, whether None is allowed."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return _slot(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        options = [a for a in get_args(annotation) if a is not type(None)]
        optional = len(options) < len(get_args(annotation))
        slots = [_slot(option) for option in options]
        kinds = tuple(kind for slot in slots for kind in slot[0])
        return (kinds, any(slot[1] for slot in slots), optional) if kinds else ((), False, optional)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence) and get_args(annotation):
        kinds, _, _ = _slot(get_args(annotation)[0])
        return kinds, bool(kinds), False
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return (annotation,), False, False
    return (), False, annotation is type(None)


def _type_text(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        inner, *limits = get_args(annotation)
        shown = ", ".join(_limit_text(limit) for limit in limits)
        return f"{_type_text(inner)} ({shown})" if shown else _type_text(inner)
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(a) for a in get_args(annotation))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in get_args(annotation))
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and origin is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}


def _limit_text(limit: Any) -> str:
    metadata = getattr(limit, "metadata", None) or [limit]
    found = ((sign, getattr(item, name, None)) for item in metadata for name, sign in _LIMITS.items())
    return ", ".join(f"{sign} {bound}" for sign, bound in found if bound is not None)


def _argument_docs(part: type[Part]) -> dict[str, str]:
    """The `Args:` section of the class docstring, one entry a field."""
    doc = inspect.getdoc(part) or ""
    match = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", doc + "\n", re.MULTILINE)
    if not match:
        return {}
    entries: dict[str, str] = {}
    current = ""
    for line in match.group(1).splitlines():
        head = re.match(r"^ {4}(\w+): (.*)$", line)
        if head:
            current = head.group(1)
            entries[current] = head.group(2).strip()
        elif current and line.strip():
            entries[current] += " " + line.strip()
    return entries


def _is_json(value: Any) -> bool:
    if value is None or isinstance(value, (bool, int, float, str)):
        return True
    return isinstance(value, (list, tuple)) and all(_is_json(v) for v in value)
