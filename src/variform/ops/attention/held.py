"""The tensors that score modifiers and normalisers hold, at any depth: modifiers hold modifiers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

__all__ = ["tensors_of", "with_tensors"]


def tensors_of(values: Iterable[Any]) -> list[Tensor]:
    """The tensors within modifiers and normalisers, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple):
            found += tensors_of(value)
        elif is_dataclass(value):
            found += tensors_of(getattr(value, field.name) for field in fields(value))
    return found


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with other tensors, in the order of `tensors_of`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        return tuple(with_tensors(item, tensors) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: with_tensors(getattr(value, field.name), tensors) for field in fields(value)}
        )
    return value
