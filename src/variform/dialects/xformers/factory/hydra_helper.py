"""Hydra's view of the parts: a schema for each, by which it checks what configuration files say."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import field, make_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union

from variform.dialects.xformers.building import Key, keys_of
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY
from variform.dialects.xformers.components.feedforward import FEEDFORWARD_REGISTRY
from variform.dialects.xformers.components.positional_embedding import POSITION_EMBEDDING_REGISTRY
from variform.dialects.xformers.utils import Registry

GROUPS: Mapping[str, Registry] = {
    "ff": FEEDFORWARD_REGISTRY,
    "pe": POSITION_EMBEDDING_REGISTRY,
    "attention": ATTENTION_REGISTRY,
}
"""The configuration groups below `xformers/`, and the parts in them."""

FILLED_IN = frozenset({"dim_model", "num_heads", "dim_head"})
"""Keys that the block around a part fills in where they are missing."""


def import_xformer_config_schema() -> tuple[str, ...]:
    """Store the schema of every registered part as `xformers/{ff,pe,attention}/<name>_schema`.

    A schema in a defaults list makes Hydra refuse keys that the part does not have and values of the wrong type, and
    fills in the part's name. Keys that the part needs must be given. Values that Hydra has no type for (tensors,
    modules) are not checked by it; a file describes them with `_target_`. The part itself checks all of them again.

    Returns:
        The stored names.

    Raises:
        ImportError: hydra-core is not installed.
    """
    from hydra.core.config_store import ConfigStore

    store, stored = ConfigStore.instance(), []
    for group, registry in GROUPS.items():
        for name in registry:
            store.store(name=f"{name}_schema", node=schema_of(registry, name), group=f"xformers/{group}")
            stored.append(f"xformers/{group}/{name}_schema")
    return tuple(stored)


def schema_of(registry: Registry, name: str) -> type:
    """The keys of a part as a dataclass of types that OmegaConf knows; what may be left out is None."""
    keys = {"name": Key("name", str, False, True), **keys_of(registry[name])}
    found = []
    for key in keys.values():
        needed = key.required and key.name not in FILLED_IN
        default = name if key.name == "name" else "???" if needed else None
        found.append((key.name, _plain_type(key.annotation), field(default=default)))
    return make_dataclass(f"{name}_schema", found)


def _plain_type(annotation: Any) -> Any:
    """The nearest type that OmegaConf can hold, with None, which leaves a key to the part's own default."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _plain_type(arguments[0])
    if origin in (Union, types.UnionType):
        plain = {_plain_type(argument) for argument in arguments if argument is not type(None)}
        return plain.pop() if len(plain) == 1 else Any
    if origin is Literal:
        return str | None if all(isinstance(argument, str) for argument in arguments) else Any
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return str | None  # by value, as everywhere in the dialect; OmegaConf would go by the members' names
    return annotation | None if annotation in (int, float, bool, str) else Any
