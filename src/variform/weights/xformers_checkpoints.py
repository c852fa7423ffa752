"""Weights that xFormers 0.0.16 to 0.0.28 saved, into models of the dialect built from the same configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.errors import ConfigError, Problem
from variform.parts.mixer.compositional import Compositional, CrossCompositional
from variform.weights.entries import Entry, constant, load_entries, plain
from variform.weights.xformers_compositional import compositional_entries, compositional_idle

_NAMES = (
    (re.compile(r"\battention\.native\.filters$"), "attention.skip_connection.weight"),
    (re.compile(r"\battention\.native\."), "attention."),  # a part of the core behind upstream's interface
    (re.compile(r"^encoders\.(\d+)\.wrap_att\.branch\."), r"encoders.blocks.\1.f.net."),  # reversible
    (re.compile(r"^encoders\.(\d+)\.wrap_ff\.branch\."), r"encoders.blocks.\1.g.net."),
)
_POSITIONS = "encoders.0.pose_encoding."
_REVERSIBLE_POSITIONS = "rev_enc_pose_encoding."
_FINAL_NORM = re.compile(r"^(encoders\.\d+\.final_norm|(.*\bwrap_ff\.)sublayer\.layer\.norm)\.weight$")

LEGACY = "checkpoints of old versions lack it: load_xformers(..., legacy=True) rebuilds what they were made with"


def load_xformers(model: nn.Module, tensors: Mapping[str, Tensor], *, legacy: bool = False, prefix: str = "") -> None:
    """Fill a model of the xFormers dialect with a checkpoint of xFormers' own, made with the same configuration.

    Old versions built some things otherwise than they said; the dialect builds what was said. With `legacy` the model
    is first given the structure that the checkpoint was trained in: no final norm and no simplicial embedding where
    upstream lost them (more than one layer), DeepNorm's factors of an encoder alone. Random features and masks, which
    upstream drew anew each time and did not save, stay the model's own.

    Args:
        model: an `xFormer`, a block, or a `MultiHeadDispatch` of the dialect.
        tensors: the checkpoint's `state_dict()`; nothing in the model changes unless all of it fits.
        legacy: rebuild the structure of old versions.
        prefix: what the checkpoint's keys begin with.

    Raises:
        ConfigError: weights that are missing, left over or of another shape, all at once.
    """
    found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    rebuild: Any = getattr(model, "rebuild_as_upstream", None)
    if legacy and rebuild is not None:
        rebuild(found)
    entries = list(_entries(model, found))
    if not legacy:
        _refuse_old(model, found, {entry.key for entry in entries})
    kept = _drawn(model)
    entries = [entry for entry in entries if not (legacy and entry.key in kept and entry.key not in found)]
    load_entries(entries, found, ignored=tuple(_unused(model)))


def _entries(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Entry]:
    own = model.state_dict(keep_vars=True)
    reversible = any(key.startswith(_REVERSIBLE_POSITIONS) for key in tensors)
    composed = dict(_composed(model))
    for name, maps in composed.items():
        yield from compositional_entries(upstream_name(name), maps, tensors)
    for name, tensor in own.items():
        if name.startswith(tuple(composed)):
            continue
        if reversible and name.startswith(_POSITIONS):
            name = name.replace(_POSITIONS, _REVERSIBLE_POSITIONS)
        yield plain(upstream_name(name), tensor)
    for name, module in _modules(model):
        if name.endswith("in_proj_container."):
            yield from _shared(name, own, tensors)
        if name.endswith("rotary_embeddings.") and f"{name}inv_freq" in tensors:
            rotation: Any = module
            size = rotation.spec["dim_head"]
            frequencies = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
            yield constant(f"{name}inv_freq", frequencies, "rotary frequencies")


def upstream_name(name: str) -> str:
    """What upstream called a weight of the dialect."""
    for pattern, theirs in _NAMES:
        name = pattern.sub(theirs, name)
    return name


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with the prefix of their weights; one that stands twice comes twice, as in a state dict."""
    for name, module in model.named_modules(remove_duplicate=False):
        yield f"{name}." if name else "", module


def _shared(name: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Iterator[Entry]:
    """Projections that are one here: upstream wrote their weight down under each of its names."""
    for part in ("weight", "bias"):
        one = own.get(f"{name}q_proj.{part}")
        for other in ("k_proj", "v_proj"):
            key = f"{name}{other}.{part}"
            if one is not None and key not in own and key in tensors:
                yield plain(key, one)


def _unused(model: nn.Module) -> Iterator[str]:
    """Weights that upstream made and never ran, beside attentions that own their heads, and offsets that cancel."""
    for name, module in _modules(model):
        if getattr(getattr(module, "attention", None), "requires_skip_multi_head", False):
            maps = ("proj", *(f"in_proj_container.{map}_proj" for map in "qkv"))
            yield from (f"{name}{map}.{what}" for map in maps for what in ("weight", "bias"))
    for name, _ in _composed(model):
        yield from compositional_idle(upstream_name(name))


def _composed(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Compositional attentions: what their weights' names begin with, and their maps."""
    for name, module in _modules(model):
        if isinstance(module, (Compositional, CrossCompositional)):
            yield name, module.maps


def _drawn(model: nn.Module) -> set[str]:
    """Buffers: what upstream drew at random and did not save."""
    kept = model.state_dict().keys()
    return {upstream_name(name) for name, _ in model.named_buffers() if name in kept}


def _refuse_old(model: nn.Module, tensors: Mapping[str, Tensor], known: set[str]) -> None:
    """Say `legacy` where a checkpoint lacks what old versions lacked."""
    missing = known - set(tensors)
    problems = [Problem(key, "missing in the checkpoint", hint=LEGACY) for key in sorted(missing & _drawn(model))]
    for match in filter(None, map(_FINAL_NORM.match, sorted(missing))):
        if match[2] is None or f"{match[2]}layer.norm.weight" in tensors:
            place = match[1] if match[2] is None else f"{match[2]}norm"
            problems.append(Problem(place, "the checkpoint has no final norm", hint=LEGACY))
    if problems:
        raise ConfigError(problems)
