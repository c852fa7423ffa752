"""Weights from and to x-transformers (github.com/lucidrains/x-transformers): the same function, other tensors.

What differs: gains of norms are stored less one, value and gate of a GLU are one map, query heads of grouped-query
attention are tiled (query head i reads key head i mod kv_heads; here i // group), patches are (row, column, channel).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from posixpath import commonpath

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
    _check_keys(entries, tensors, prefix)
    load_entries(entries, tensors)


def _check_keys(entries: list[Entry], tensors: Mapping[str, object], prefix: str) -> None:
    """Refuse what is no state dict, and keys that all begin otherwise, saying with what.

    Raises:
        ConfigError: naming the key, or the prefix to give.
    """
    for key, value in tensors.items():
        if not isinstance(value, Tensor):
            hint = "give the state dict that lies in it" if isinstance(value, Mapping) else ""
            raise ConfigError(f"a state dict holds tensors, and this is a {type(value).__name__}", path=key, hint=hint)
    known = {entry.key for entry in entries}
    first = entries[0].key if entries else ""
    for key in tensors:
        begins = key.removesuffix(first)
        if begins != key and begins and {begins + own for own in known} == set(tensors):
            hint = f"prefix={begins + prefix!r}"
            raise ConfigError(f"all keys of the checkpoint begin with {begins!r}", path=key, hint=hint)


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
        return _learning(model, beside)
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


def _learning(model: nn.Module, entries: list[Entry]) -> list[Entry]:
    """Modules that learn while a text is read stand in a wrapper upstream, as its `module`, and here as they are."""
    learners: Mapping[str, nn.Module] = getattr(model, "learners", {})
    for path, module in learners.items():
        params = {id(param) for param in module.parameters()}
        keys = [one.key for one in entries if one.params and all(id(param) in params for param in one.params)]
        begins = [key.partition(f"{path}.")[0] + path for key in keys if f"{path}." in key]
        if not begins and keys:  # a path of this library
            begins = [commonpath(key.rpartition(".")[0].replace(".", "/") for key in keys).replace("/", ".")]
        renamed = {key: f"{begins[0]}.module.{key.removeprefix(f'{begins[0]}.')}" for key in keys}
        entries = [replace(one, key=renamed.get(one.key, one.key)) for one in entries]
    return entries


def _held(part: nn.Module | Tensor, prefix: str, unit_offset: bool | None) -> list[Entry]:
    """The entries of a module that a class of the dialect holds; one that is no model goes by its own names."""
    if isinstance(part, Tensor):
        return [plain(prefix, part)]
    if isinstance(part, Part) or hasattr(part, "native") or hasattr(part, "upstream_modules"):
        return entries_of(part, prefix, unit_offset)
    return [plain(prefix + name, tensor) for name, tensor in part.state_dict(keep_vars=True).items()]
