"""How an option set is built, called and judged, with upstream's package or ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import variform.dialects.x_transformers as ours
from tests.parity.x_transformers.option_set import OptionSet

LENGTH = 13


def builder(one: OptionSet) -> Any:
    """`build(package)`: the model that a set describes."""

    def build(package: Any) -> nn.Module:
        layers, model = one.keywords(upstream=package is not ours)
        built: nn.Module = package.TransformerWrapper(attn_layers=getattr(package, one.stack)(**layers), **model)
        return built

    return build


def plain_builder(one: OptionSet) -> Any:
    """The same without what the set is about: the default that its output has to differ from."""
    kept = {name: value for name, value in one.layers.items() if name == "cross_attend"}
    stack = "Decoder" if one.stack == "PrefixDecoder" else one.stack
    return builder(OptionSet("plain", kept, stack=stack))


def ids_of(one: OptionSet, rows: int = 2) -> Tensor:
    """Token ids [B, L] for a set."""
    size = one.keywords()[1]["num_tokens"]
    return torch.randint(0, size, (rows, LENGTH), generator=torch.Generator().manual_seed(3))


def arguments(one: OptionSet, ids: Tensor, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The further arguments of a call, the same each time it is asked."""
    torch.manual_seed(7)
    given = {} if one.call is None else one.call(ids)
    floating = {n for n, x in given.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return {name: x.to(dtype) if name in floating else x for name, x in given.items()}


def flat(out: Any) -> Tensor:
    """What a model answers with as one tensor; several heads answer one after another."""
    if isinstance(out, (list, tuple)):
        return torch.cat([flat(part).flatten() for part in out])
    assert isinstance(out, Tensor)
    return out
