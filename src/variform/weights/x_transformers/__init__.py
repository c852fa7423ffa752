"""Weights from and to x-transformers (github.com/lucidrains/x-transformers): the same function, other tensors.

What differs: gains of norms are stored less one, value and gate of a GLU are one map, query heads of grouped-query
attention are tiled (query head i reads key head i mod kv_heads; here i // group), patches are (row, column, channel).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from variform.core.part import Part
from variform.errors import ConfigError
from variform.weights.entries import Entry, load_entries, plain, store_entries
from variform.weights.x_transformers.attention import tiled_heads
from variform.weights.x_transformers.model import model_entries

__all__ = ["entries_of", "load_x_transformers", "tiled_heads", "to_x_transformers"]


def load_x_transformers(
    model: nn.Module, tensors: Mapping[str, Tensor], *, prefix: str = "", unit_offset: bool | None = None
) -> None:
    """Fill a model with the weights of an x-transformers checkpoint of the same architecture.

    Args:
        model: a model or stack of the core, or a class of the x-transformers dialect.
        tensors: the checkpoint's `state_dict()`; nothing in the model changes unless all of it fits.
        prefix: what the keys begin with, "net." for that of an AutoregressiveWrapper.
        unit_offset: whether gains are stored less one; as the model says, else True.

    Raises:
        ConfigError: the structure has no counterpart, or keys or shapes differ; all problems at once.
    """
    entries = entries_of(model, prefix, unit_offset)
    if getattr(model, "has_ttt", False):
        tensors = _unwrapped(entries, tensors)
    load_entries(entries, tensors)


def _unwrapped(entries: list[Entry], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Modules that learn while a text is read stand in a wrapper upstream, as its `module`, and here as they are."""
    known = {entry.key for entry in entries}
    plainly = {key: key.replace(".module.", ".") for key in tensors if key not in known}
    return {plainly[key] if plainly.get(key) in known else key: tensor for key, tensor in tensors.items()}


def to_x_transformers(model: nn.Module, *, prefix: str = "", unit_offset: bool | None = None) -> dict[str, Tensor]:
    """The inverse of `load_x_transformers`: a state dict that upstream's classes load strictly."""
    return store_entries(entries_of(model, prefix, unit_offset))


def entries_of(model: nn.Module, prefix: str = "", unit_offset: bool | None = None) -> list[Entry]:
    """How every tensor of the checkpoint of `model` is made up.

    A class of the dialect says what its keys are called where they differ (`upstream_keys`), and which other modules
    it holds under which beginnings of keys (`upstream_modules`).

    Raises:
        ConfigError: a part has no counterpart in x-transformers.
    """
    held: Mapping[str, nn.Module | Tensor] = getattr(model, "upstream_modules", {})
    beside = [entry for key, part in held.items() for entry in _held(part, prefix + key, unit_offset)]
    if held and ("net." in held or "net.net." in held or not hasattr(model, "native")):
        return beside
    offset = getattr(model, "unit_offset", True) if unit_offset is None else unit_offset
    native = getattr(model, "native", model)
    renamed: Mapping[str, str] = getattr(model, "upstream_keys", {})
    entries = [
        replace(entry, key=prefix + renamed.get(entry.key, entry.key))
        for entry in model_entries(native, "", float(offset))
    ]
    covered = {id(param) for entry in entries for param in entry.params}
    left = [name for name, param in native.named_parameters() if id(param) not in covered]
    if left:
        raise ConfigError(f"x-transformers has no counterpart of {', '.join(left)}")
    return entries + beside


def _held(part: nn.Module | Tensor, prefix: str, unit_offset: bool | None) -> list[Entry]:
    """The entries of a module that a class of the dialect holds; one that is no model goes by its own names."""
    if isinstance(part, Tensor):
        return [plain(prefix, part)]
    if isinstance(part, Part) or hasattr(part, "native") or hasattr(part, "upstream_modules"):
        return entries_of(part, prefix, unit_offset)
    return [plain(prefix + name, tensor) for name, tensor in part.state_dict(keep_vars=True).items()]
