"""Feedforwards, linear maps and norms of x-transformers' checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import nn

from variform.core.part import Part
from variform.errors import ConfigError
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.gate.branches import Branches
from variform.parts.nonlinearity.composed import Chain, UserModule
from variform.parts.nonlinearity.solu import SoLU
from variform.parts.norm.adaptive import AdaptiveNorm
from variform.parts.norm.norms import LayerNorm, RMSNorm, ScaleNorm
from variform.parts.norm.pointwise import Derf, DynamicTanh
from variform.parts.norm.soft_clamp import SoftClamp
from variform.weights.entries import Entry, affine, constant, joined, plain


def feedforward_entries(part: MLP | GLU, prefix: str) -> Iterator[Entry]:
    """The entries of a feedforward."""
    down = 2 if part.norm is None else 3
    if isinstance(part, GLU):
        yield from _branches(part.before, f"{prefix}0.")
        yield joined(f"{prefix}0.proj.weight", (part.up.weight, part.gate.weight))
        if "bias" in dict(part.up.named_parameters()):
            yield joined(f"{prefix}0.proj.bias", (part.up.bias, part.gate.bias))
        else:  # upstream's gated map always has offsets
            yield constant(f"{prefix}0.proj.bias", part.up.weight.new_zeros(2 * part.up.out_features), "offsets")
    else:
        yield from linear_entries(f"{prefix}0.0", part.up)
        yield from _nonlinearity(part.pre_act, lambda place: f"{prefix}0.{place + 1}.")
    yield from norm_entries(f"{prefix}1", part.norm, 0.0)
    yield from linear_entries(f"{prefix}{down}", part.down)


def _branches(part: nn.Module | None, prefix: str) -> Iterator[Entry]:
    """What the branches of a GLU pass, by upstream's names."""
    if part is None:
        return
    if not isinstance(part, Branches):
        raise no_counterpart(part)
    if part.gain is not None:
        yield plain(f"{prefix}mult_bias", part.gain)
    yield from _nonlinearity(part.gate, lambda place: f"{prefix}act.")
    yield from _nonlinearity(part.up, lambda place: prefix)


def _nonlinearity(part: nn.Module | None, prefix_of: Callable[[int], str]) -> Iterator[Entry]:
    """The tensors of nonlinearities; `prefix_of` tells what keys begin with at a place of the chain."""
    for place, step in enumerate(part.functions if isinstance(part, Chain) else () if part is None else (part,)):
        if isinstance(step, SoLU):
            yield from norm_entries(f"{prefix_of(place)}norm", step.norm, 0.0)
        elif isinstance(step, UserModule):
            for name, tensor in step.module.state_dict(keep_vars=True).items():
                yield plain(prefix_of(place) + name, tensor)
        elif list(step.parameters()):
            raise no_counterpart(step)


def linear_entries(key: str, linear: nn.Linear) -> Iterator[Entry]:
    """The entries of a linear map."""
    yield plain(f"{key}.weight", linear.weight)
    if linear.bias is not None:
        yield plain(f"{key}.bias", linear.bias)


def norm_entries(key: str, norm: nn.Module | None, offset: float) -> Iterator[Entry]:
    """The entry of a norm, `offset` less than its gain; none for a norm without gains."""
    if norm is None or (isinstance(norm, RMSNorm) and norm.weight is None):
        return
    if isinstance(norm, SoftClamp):
        yield from norm_entries(key, norm.norm, offset)
        return
    # Upstream's LayerNorm has torch's eps and no offset, its other norms divide by the length of x itself.
    if isinstance(norm, LayerNorm) and norm.weight is not None and norm.bias is None and norm.eps == 1e-5:
        yield affine(f"{key}.gamma", norm.weight, offset=offset)
    elif isinstance(norm, RMSNorm) and norm.weight is not None and norm.eps <= 1e-12:
        yield affine(f"{key}.g", norm.weight, offset=offset)
    elif isinstance(norm, DynamicTanh):
        yield affine(f"{key}.pre_tanh_scale", norm.alpha, offset=offset * norm.initial)
        yield affine(f"{key}.gamma", norm.weight, offset=offset)
        yield plain(f"{key}.beta", norm.bias)
    elif isinstance(norm, Derf):
        yield affine(f"{key}.alpha", norm.alpha, offset=offset)
        yield plain(f"{key}.s", norm.shift)
        yield affine(f"{key}.gamma", norm.weight, offset=offset)
        yield plain(f"{key}.beta", norm.bias)
    elif isinstance(norm, AdaptiveNorm) and not list(norm.norm.parameters()):
        yield plain(f"{key}.to_gamma.weight", norm.gain.weight)
    elif isinstance(norm, ScaleNorm) and norm.eps <= 1e-6:
        yield affine(f"{key}.g", norm.scale, factor=math.sqrt(norm.dim), offset=offset)
    else:
        raise no_counterpart(norm)


def no_counterpart(part: nn.Module) -> ConfigError:
    """The error of a part that x-transformers does not have."""
    name = f"{part.kind} {part.name!r}" if isinstance(part, Part) else type(part).__name__
    return ConfigError(f"x-transformers has no counterpart of this {name}, as it is configured here")
