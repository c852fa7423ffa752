"""Masks as pytree nodes: their tensors are leaves, so that they pass through export, compile and FSDP hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["field_names", "register"]


def field_names(of: Any) -> tuple[str, ...]:
    """Names of a dataclass's fields, in order; torch.compile follows those of an instance, not of its class."""
    return tuple(field.name for field in dataclasses.fields(of))


def register(cls: type[Any]) -> None:
    """Make `cls` a pytree node: `_leaves` are children, the other fields are its (JSON-able) context."""

    def static_names() -> list[str]:
        return [name for name in field_names(cls) if name not in cls._leaves]

    def flatten(mask: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(mask, name) for name in cls._leaves], tuple(getattr(mask, name) for name in static_names())

    def flatten_with_keys(mask: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children, context = flatten(mask)
        return [(pytree.GetAttrKey(name), child) for name, child in zip(cls._leaves, children, strict=True)], context

    def unflatten(children: Iterable[Any], context: tuple[Any, ...]) -> Any:
        # Not through __init__: a tree map may put placeholders where validation expects tensors.
        mask = object.__new__(cls)
        for name, value in zip([*cls._leaves, *static_names()], [*children, *context], strict=True):
            object.__setattr__(mask, name, value)
        return mask

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        to_dumpable_context=list,
        from_dumpable_context=_as_tuples,
        flatten_with_keys_fn=flatten_with_keys,
    )


def _as_tuples(context: Any) -> Any:
    """JSON turns tuples into lists; masks hold tuples, which hash."""
    return tuple(_as_tuples(value) for value in context) if isinstance(context, list) else context
