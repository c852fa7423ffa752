"""Building: from a resolved spec tree to a module tree, children first."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from variform.core.codec import as_spec
from variform.core.fields import fields_of
from variform.core.part import Part
from variform.core.resolve import resolve
from variform.core.spec import Shared, Spec


def build(
    spec: Any, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, **facts: Any
) -> Any:
    """Build the module that a spec describes; `module.spec` is the full, resolved spec.

    Nothing that is passed in is changed, and two builds of one spec under the same seed are equal.

    Args:
        spec: a `Spec`, a mapping (`{"part": ..., ...}`), a preset mapping, or a path to a YAML or JSON file.
        device: where the parameters are made; "meta" allocates nothing.
        dtype: the floating-point type of the parameters.
        **facts: what the surroundings provide, when a part is built alone (`dim=64, heads=4`).

    Raises:
        ConfigError: all problems of the spec at once.
    """
    resolved = resolve(as_spec(spec), **facts)
    where: AbstractContextManager[Any] = nullcontext() if device is None else torch.device(device)
    with where:
        module = _make(resolved, {})
    return module if dtype is None else module.to(dtype)


def materialise(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Give a module that was built on "meta" real parameters on `device`, initialised as if built there."""
    module.to_empty(device=device)
    for child in module.modules():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
    return module


def _make(spec: Spec, shared: dict[str, Part]) -> Part:
    arguments: dict[str, Any] = {}
    for f in fields_of(spec.part):
        value = spec.args[f.name]
        if f.is_slot:
            value = [_child(v, shared) for v in value] if f.many else _child(value, shared)
        arguments[f.name] = value
    part: Part = spec.part(**arguments)
    part.spec = spec
    return part


def _child(value: Spec | Shared | None, shared: dict[str, Part]) -> Part | None:
    if isinstance(value, Shared):
        if value.name not in shared:
            assert value.spec is not None
            shared[value.name] = _make(value.spec, shared)
        return shared[value.name]
    return None if value is None else _make(value, shared)
