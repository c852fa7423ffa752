"""Weights as safetensors: one tensor for each module that owns it, aliases for the places that share it.

A file holds each tensor once, under the first name it has in the model; `aliases` in the file's metadata maps every
further name to that first one. The metadata also carries the model's spec, so that a file alone rebuilds the model.
Equal models give equal bytes. Nothing in a file is executed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from variform.core.build import build
from variform.core.codec import from_dict, to_dict
from variform.core.part import Part
from variform.errors import ConfigError, Problem, did_you_mean

METADATA = "variform"
"""The one entry of a file's metadata: JSON with `aliases` and, where it is known, `spec`."""


def save_weights(model: nn.Module, path: str | Path, *, state: Mapping[str, Tensor] | None = None) -> Path:
    """Write a model's parameters and persistent buffers; an existing file is replaced at once or not at all.

    Args:
        model: the model; its spec, when it was built from one, goes into the file.
        path: where; ends in .safetensors.
        state: the tensors by name, when they are not the model's own (gathered shards).

    Raises:
        ConfigError: the folder cannot be written.
    """
    target = Path(path)
    tensors = dict(model.state_dict() if state is None else state)
    aliases = shared_names(model)
    kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items() if name not in aliases}
    facts: dict[str, Any] = {"aliases": aliases}
    if isinstance(model, Part) and "_spec" in model.__dict__:
        facts["spec"] = to_dict(model.spec)
    # One entry: safetensors writes several in an order that changes from process to process.
    metadata = {METADATA: json.dumps(facts)}
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        save_file(kept, partial, metadata=metadata)
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {str(target)!r}: {_reason(error)}") from None
    return target


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a file into a model: every name, shape and dtype must match, or nothing is changed.

    Raises:
        ConfigError: the file is missing or damaged, or its tensors are not the model's; all mismatches at once.
    """
    source = Path(path)
    tensors, facts = _read(source)
    stored = _aliases(facts, source, tensors)
    own = _tensors(model)
    wanted = shared_names(model)
    problems = _mismatches(own, wanted, tensors, stored)
    if problems:
        raise ConfigError(problems)
    with torch.no_grad():
        for name, tensor in own.items():
            if name not in wanted:
                tensor.copy_(tensors[stored.get(name, name)])


def load_model(path: str | Path, *, device: torch.device | str | None = None) -> Any:
    """Build the model that a weights file describes, and load it; in evaluation mode.

    Raises:
        ConfigError: the file is missing or damaged, or carries no spec.
    """
    source = Path(path)
    facts = _read(source, names_only=True)[1]
    if "spec" not in facts:
        hint = "build the model from its spec, then load_weights(model, path)"
        raise ConfigError(f"{str(source)!r} carries no spec of its model", hint=hint)
    model = build(from_dict(facts["spec"]))
    load_weights(model, source)
    return model.to(device).eval() if device is not None else model.eval()


def shared_names(model: nn.Module) -> dict[str, str]:
    """Every further name of a tensor that the model holds in several places, with its first name."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in _tensors(model).items():
        owner = first.setdefault(id(tensor), name)
        if owner != name:
            aliases[name] = owner
    return aliases


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers under all their names, as they are (not detached copies)."""
    return dict(model.state_dict(keep_vars=True))


def _read(source: Path, names_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not source.is_file():
        near = [p.name for p in source.parent.glob("*.safetensors")] if source.parent.is_dir() else []
        raise ConfigError(f"there is no weights file {str(source)!r}", hint=did_you_mean(source.name, near))
    try:
        with safe_open(source, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {} if names_only else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        message = f"{str(source)!r} is damaged or not a safetensors file: {_reason(error)}"
        raise ConfigError(message, hint="save it again, or take it from a backup") from None
    if not isinstance(facts, dict):
        raise ConfigError(f"{str(source)!r} is damaged: its metadata is not a mapping")
    return tensors, facts


def _aliases(facts: Mapping[str, Any], source: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    aliases = facts.get("aliases", {})
    if not isinstance(aliases, dict) or not all(isinstance(o, str) and o in tensors for o in aliases.values()):
        raise ConfigError(f"{str(source)!r} is damaged: its table of shared tensors does not fit its tensors")
    return {str(name): owner for name, owner in aliases.items()}


def _mismatches(
    own: Mapping[str, Tensor], wanted: Mapping[str, str], tensors: Mapping[str, Tensor], stored: Mapping[str, str]
) -> list[Problem]:
    problems: list[Problem] = []
    there = {*tensors, *stored}
    for name, tensor in own.items():
        if name not in there:
            problems.append(Problem(name, "missing in the file", hint=did_you_mean(name, there - set(own))))
            continue
        found = tensors[stored.get(name, name)]
        if found.shape != tensor.shape:
            problems.append(Problem(name, f"the file has shape {list(found.shape)}, the model {list(tensor.shape)}"))
        elif found.dtype != tensor.dtype:
            hint = "build the model with dtype=... of the file"
            problems.append(Problem(name, f"the file has {found.dtype}, the model {tensor.dtype}", hint=hint))
    left = sorted(there - set(own))
    problems += [Problem(name, "left over: the model has no tensor of this name") for name in left]
    return problems + _sharing(sorted(set(own) & there), wanted, stored)


def _sharing(names: Sequence[str], wanted: Mapping[str, str], stored: Mapping[str, str]) -> list[Problem]:
    """Names that are one tensor in the file and several in the model, or the other way round."""
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for name in names:
        owner, source = wanted.get(name, name), stored.get(name, name)
        if stored.get(owner, owner) != source:
            problems.append(Problem(name, f"the model shares it with {owner}, the file does not"))
        elif seen.setdefault(source, owner) != owner:
            problems.append(Problem(name, f"the file shares it with {seen[source]}, the model does not"))
    return problems


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
