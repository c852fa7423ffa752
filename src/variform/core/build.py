"""Building: from a resolved spec tree to a module tree, children first."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from variform.core.codec import as_spec
from variform.core.fields import fields_of
from variform.core.part import Part
from variform.core.resolve import resolve
from variform.core.spec import Shared, Spec
from variform.errors import ConfigError


def build(
    spec: Any,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    ready: Mapping[str, Part] | None = None,
    **facts: Any,
) -> Any:
    """Build the module that a spec describes; `module.spec` is the full, resolved spec.

    Nothing that is passed in is changed, and two builds of one spec under the same seed are equal.

    Args:
        spec: a `Spec`, a mapping (`{"part": ..., ...}`), a preset mapping, or a path to a YAML or JSON file.
        device: where the parameters are made; "meta" allocates nothing.
        dtype: the floating-point type of the parameters.
        ready: parts that exist already, by their path in the spec (`stacks.0`); they are used as they are.
        **facts: what the surroundings provide, when a part is built alone (`dim=64, heads=4`).

    Raises:
        ConfigError: all problems of the spec at once; or a ready part was built from another spec than the one there.
    """
    resolved = resolve(as_spec(spec), **facts)
    where: AbstractContextManager[Any] = nullcontext() if device is None else torch.device(device)
    with where:
        module = _Builder(ready or {}).make(resolved, "")
    return module if dtype is None else module.to(dtype)


def materialise(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Give a module that was built on "meta" real parameters on `device`, initialised as if built there."""
    module.to_empty(device=device)
    for child in module.modules():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
    return module


class _Builder:
    """Makes parts, children first; a shared part once, a ready part not at all."""

    def __init__(self, ready: Mapping[str, Part]) -> None:
        self.ready = ready
        self.shared: dict[str, Part] = {}

    def make(self, spec: Spec, path: str) -> Part:
        """The part that `spec` describes."""
        if path in self.ready:
            return self._checked(self.ready[path], spec, path)
        arguments: dict[str, Any] = {}
        for f in fields_of(spec.part):
            value, here = spec.args[f.name], f"{path}.{f.name}" if path else f.name
            if f.many:
                value = [self._child(item, f"{here}.{index}") for index, item in enumerate(value)]
            elif f.is_slot:
                value = self._child(value, here)
            arguments[f.name] = value
        part: Part = spec.part(**arguments)
        part.spec = spec
        return part

    def _child(self, value: Spec | Shared | None, path: str) -> Part | None:
        if isinstance(value, Shared):
            if value.name not in self.shared:
                assert value.spec is not None
                self.shared[value.name] = self.make(value.spec, path)
            return self.shared[value.name]
        return None if value is None else self.make(value, path)

    def _checked(self, part: Part, spec: Spec, path: str) -> Part:
        if part.spec != spec:
            message = "the ready part was built from another spec than the one that stands here"
            raise ConfigError(message, path=path, hint="build it from the resolved spec: resolve(spec)")
        return part
