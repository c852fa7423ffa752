"""Other forms of plain data that describe a spec: a dialect registers how its own files are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from variform.core.spec import Spec

Reader = Callable[[Mapping[str, Any], Iterable[str]], "Spec"]
"""Makes a spec from a mapping and overrides, `path=value`."""

_readers: dict[str, Reader] = {}


def register_format(key: str, reader: Reader) -> None:
    """Read mappings that have `key` at their root, and neither `part`, `preset` nor `shared`, with `reader`."""
    _readers[key] = reader


def reader_of(content: Any) -> Reader | None:
    """The reader of a mapping in one of the registered forms; None for all else."""
    if not isinstance(content, Mapping) or {"part", "preset", "shared"} & set(content):
        return None
    return next((reader for key, reader in _readers.items() if key in content), None)
