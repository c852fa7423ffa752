"""Arguments and results as a hashable form plus their tensors: equal forms give equal costs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from variform.ops.recompute import Cheap

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)


def form(value: Any, tensors: list[Tensor]) -> Hashable:
    """The shape of a value without its tensors, which are appended to `tensors`.

    Containers and dataclasses (masks, score modifiers, `Sides`) are looked into; anything else stands for itself.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return (tuple(value.shape), tuple(value.stride()), value.dtype, value.device, value.requires_grad)
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, Mapping):
        return (type(value), tuple((key, form(item, tensors)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return (type(value), tuple(form(item, tensors) for item in value))
    if is_dataclass(value) and not isinstance(value, type):
        return (type(value), tuple(form(getattr(value, f.name), tensors) for f in fields(value)))
    return ("object", _ById(value))


def rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    """A copy of a value with its tensors replaced, in the order in which `form` met them."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {key: rebuilt(item, tensors) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rebuilt(item, tensors) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(rebuilt(item, tensors) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = object.__new__(type(value))  # not through __init__, which may compute from its arguments
        for f in fields(value):
            object.__setattr__(changed, f.name, rebuilt(getattr(value, f.name), tensors))
        return changed
    return value


def main_tensors(value: Any) -> list[Tensor]:
    """The tensors a part works on or returns, in order: of tuples and lists, not of streams or side inputs."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Cheap):
        return [value.value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in main_tensors(item)]
    return []


class _ById:
    """Compares by identity and keeps its object alive, so that the identity stays its own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
