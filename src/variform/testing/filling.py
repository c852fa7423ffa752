"""Values for required fields: the smallest instance of a part."""

from __future__ import annotations

import types
import typing
from typing import Any, Union, get_args, get_origin

from variform.core.fields import Field, fields_of
from variform.core.part import Part
from variform.core.spec import Spec
from variform.errors import ConfigError

FILLINGS: dict[str, dict[str, Any]] = {
    "mixer": {"part": "multi_head"},
    "feedforward": {"part": "mlp", "hidden": 12},
    "layer": {"part": "sublayer", "body": "multi_head"},
    "norm": {"part": "layer_norm"},
    "attention": {"part": "softmax"},
    "residual": {"part": "residual/scaled", "alpha": 0.7},
    "position": {"part": "position/sinusoidal"},
    "embedding": {"part": "tokens"},
    "stack": {"part": "stack", "layers": [{"part": "sublayer", "body": "multi_head"}]},
    "head": {"part": "lm"},
    "nonlinearity": {"part": "nonlinearity/soft_clamp", "value": 3.0},
}
"""What stands in a slot that has to be filled, by kind."""


def minimal(part: type[Part], without: str = "") -> Spec:
    """A spec with the required fields filled in, one left out if need be, and no others.

    Raises:
        ConfigError: a required field has a type whose values cannot be guessed.
    """
    return Spec(part, {f.name: _filling(part, f) for f in fields_of(part) if f.required and f.name != without})


def _filling(part: type[Part], f: Field) -> Any:
    if f.is_slot:
        known = [FILLINGS[kind] for kind in f.kind_names() if kind in FILLINGS]
        if not known:
            raise _unfilled(part, f)
        return [known[0]] if f.many else known[0]
    return _value(part, f, f.annotation)


def _value(part: type[Part], f: Field, annotation: Any) -> Any:
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return _value(part, f, get_args(annotation)[0])
    if origin is typing.Literal:
        return get_args(annotation)[0]
    if origin in (Union, types.UnionType):
        return None if f.optional else _value(part, f, get_args(annotation)[0])
    simple: dict[Any, Any] = {int: 3, float: 0.5, bool: False, str: "sample"}
    if annotation in simple:
        return simple[annotation]
    if origin in (tuple, list):
        return ()
    raise _unfilled(part, f)


def _unfilled(part: type[Part], f: Field) -> ConfigError:
    return ConfigError(
        f"the checks cannot guess the required field {f.name!r} of {part.kind} {part.name!r}",
        hint="pass a spec to check_part, or register instances with variform.testing.samples_for",
    )
