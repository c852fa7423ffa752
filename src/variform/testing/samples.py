"""Small instances of parts for the checks: which arguments, and inside which model."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from variform.core.fields import Field, fields_of
from variform.core.part import Part
from variform.core.registry import parts
from variform.core.spec import Spec
from variform.errors import ConfigError
from variform.testing.hosts import Host

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
}
"""What stands in a slot that has to be filled, by kind."""


@dataclass(frozen=True)
class Sample:
    """One small instance of a part.

    Args:
        spec: the instance; sizes come from the surroundings where it leaves them open.
        variant: tells several instances of one part apart.
        host: the model around it, where the usual one for its kind does not do.
    """

    spec: Spec
    variant: str = ""
    host: Host | None = None

    @property
    def label(self) -> str:
        """`kind/name`, with the variant in brackets."""
        return f"{self.spec.kind}/{self.spec.name}" + (f"[{self.variant}]" if self.variant else "")


_samples: dict[type[Part], Callable[[], list[Sample]]] = {}


def samples_for(part: type[Part]) -> Callable[[Callable[[], list[Sample]]], Callable[[], list[Sample]]]:
    """Register the instances of a part that the suite runs over, in place of the automatic one."""

    def decorate(function: Callable[[], list[Sample]]) -> Callable[[], list[Sample]]:
        _samples[part] = function
        return function

    return decorate


def samples_of(part: type[Part]) -> list[Sample]:
    """The instances registered for a part, or the one with its required fields filled in."""
    if part in _samples:
        return _samples[part]()
    return [Sample(minimal(part))]


def all_samples() -> Iterator[Sample]:
    """The instances of every registered part."""
    for part in parts().values():
        yield from samples_of(part)


def minimal(part: type[Part]) -> Spec:
    """A spec with the required fields filled in, and no others."""
    return Spec(part, {f.name: _filling(part, f) for f in fields_of(part) if f.required})


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
