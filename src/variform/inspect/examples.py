"""Inputs of a given size for a model, or for a single part."""

from __future__ import annotations

from typing import Any

import torch

from variform.core.part import Part
from variform.errors import ConfigError
from variform.parts.kinds import Head, Model, Norm, StreamPart

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def example_arguments(part: Part, batch: int, length: int | None) -> Arguments:
    """Positional and keyword arguments of a part's `forward`, of the sizes asked for.

    A model says itself what it takes (`example_inputs`); layers, mixers, feedforwards, stacks, heads and norms take
    features [batch, length, dim].

    Raises:
        ConfigError: no length is known, or the part is of a kind that cannot be run alone.
    """
    method = getattr(part, "example_inputs", None)
    if isinstance(part, Model) or (callable(method) and not isinstance(part, StreamPart | Head | Norm)):
        try:
            given = part.example_inputs(batch, length)  # type: ignore[operator]
        except NotImplementedError as error:
            raise ConfigError(str(error), hint="it tells of which sizes and types the model's inputs are") from None
        return given if isinstance(part, Model) else ((given, {}), {})
    if not isinstance(part, StreamPart | Head | Norm):
        hint = "describe the mixer, layer or model that holds it"
        raise ConfigError(f"a {part.kind} cannot be run alone", hint=hint)
    length = length or part.spec.first("max_seq_len")
    if length is None:
        raise ConfigError("give length, the number of tokens")
    x = torch.zeros(batch, length, _dim(part))
    read = {name for child in part.modules() if isinstance(child, Part) for name in child.reads}
    streams = {}
    if "context" in read:
        streams["context"] = torch.zeros(batch, length, part.spec.first("dim_context") or x.shape[-1])
    if "condition" in read:
        streams["condition"] = torch.zeros(batch, part.spec.first("dim_condition") or x.shape[-1])
    if isinstance(part, Norm):
        return (x, *streams.values()), {}
    return (x, streams), {}


def _dim(part: Part) -> int:
    dim = part.spec.first("dim")
    if dim is None:
        raise ConfigError(f"nothing in this {part.kind} says how many features it takes", hint="give dim=...")
    return dim
