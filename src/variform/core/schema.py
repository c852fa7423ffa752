"""What the registry offers, as plain data and as a JSON Schema for editors and programs."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from variform.core.fields import REQUIRED, field_schema, fields_of, type_schema
from variform.core.part import Part
from variform.core.registry import parts, presets

ANYWHERE = ("shared", "repeat", "preset")
"""What may stand in the place of a part."""


def part_schema(part: type[Part]) -> dict[str, Any]:
    """The JSON Schema of one part: an object with its fields; unknown fields are not allowed."""
    fields = fields_of(part)
    names = [part.name, f"{part.kind}/{part.name}"]
    return {
        "title": f"{part.kind}/{part.name}",
        "description": summary(part),
        "type": "object",
        "properties": {"part": {"enum": names}, **{f.name: field_schema(f) for f in fields}},
        "required": ["part", *(f.name for f in fields if f.default is REQUIRED)],
        "additionalProperties": False,
    }


def registry_schema() -> dict[str, Any]:
    """One JSON Schema for all registered parts; the root is a model, a stack or a layer."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for (kind, _), part in parts().items():
        by_kind.setdefault(kind, []).append(part_schema(part))
    defs: dict[str, Any] = {
        kind: {"anyOf": [*schemas, _names(schemas), *({"$ref": f"#/$defs/{other}"} for other in ANYWHERE)]}
        for kind, schemas in by_kind.items()
    }
    defs["preset"] = {"anyOf": [preset_schema(name, function) for name, function in presets().items()]}
    defs["shared"] = {"type": "object", "properties": {"shared": {"type": "string"}, "of": {}}, "required": ["shared"]}
    repeat = {"repeat": {"type": "integer", "minimum": 0}, "of": {}}
    defs["repeat"] = {"type": "object", "properties": repeat, "required": ["repeat", "of"]}
    for reference in _unions(by_kind):
        defs[reference] = {"anyOf": [{"$ref": f"#/$defs/{kind}"} for kind in reference.split("|") if kind in by_kind]}
    roots = [kind for kind in ("model", "stack", "layer") if kind in by_kind]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": [{"$ref": f"#/$defs/{kind}"} for kind in roots],
        "$defs": defs,
    }


def preset_schema(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON Schema of one preset: an object with its arguments."""
    types = typing.get_type_hints(function, include_extras=True)
    arguments = inspect.signature(function).parameters.values()
    return {
        "title": f"preset {name}",
        "description": (inspect.getdoc(function) or "").split("\n", 1)[0],
        "type": "object",
        "properties": {"preset": {"const": name}, **{a.name: type_schema(types[a.name]) for a in arguments}},
        "required": ["preset", *(a.name for a in arguments if a.default is a.empty)],
        "additionalProperties": False,
    }


def _names(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """A part without arguments, by its name alone."""
    return {"enum": [name for schema in schemas for name in schema["properties"]["part"]["enum"]]}


def part_info(part: type[Part]) -> dict[str, Any]:
    """A part as plain data: names, summary, fields with types, defaults and docs, abilities."""
    return {
        "kind": part.kind,
        "name": part.name,
        "class": f"{part.__module__}.{part.__qualname__}",
        "summary": summary(part),
        "fields": [
            {
                "name": f.name,
                "type": f.type_text(),
                "required": f.required,
                "default": None if f.required else repr(f.default),
                "doc": f.doc,
            }
            for f in fields_of(part)
        ],
        "can": asdict(part.can),
        "reads": sorted(part.reads),
    }


def summary(part: type[Part]) -> str:
    """The first line of a part's docstring."""
    return (inspect.getdoc(part) or "").split("\n", 1)[0]


def _unions(by_kind: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for (_, _), part in parts().items():
        for f in fields_of(part):
            if len(f.kinds) > 1:
                found.add("|".join(f.kind_names()))
    return found
