"""Initial weights, by the schemes upstream offered."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import init

from variform.core.part import Part
from variform.dialects.xformers.errors import ConfigAssertionError

_assert_if_not_initialized = False
"""Set to True to make a module whose weights no scheme initialises an error."""


class xFormerWeightInit(StrEnum):
    """Schemes of initial weights.

    timm: as timm's vision transformers; vit: as the original one (arXiv:2010.11929); moco: as MoCo v3
    (arXiv:2104.02057); small: attention by "Transformers without Tears" (arXiv:1910.05895), the rest as vit.
    """

    Timm = "timm"
    ViT = "vit"
    Moco = "moco"
    Small = "small"


Scheme = Callable[[nn.Linear, bool, float], None]
"""Initialises (a linear map, whether it belongs to a feedforward, with a gain)."""


def initialise(block: nn.Module, scheme: xFormerWeightInit, gain: float = 1.0) -> None:
    """Initialise the weights of a block.

    Modules with `init_weights` initialise themselves, and so do the library's own parts. DeepNorm's gain, where it is
    not 1, applies to feedforward, value and output maps, and not to those of queries and keys (arXiv:2203.00555).

    Args:
        block: the module; changed in place.
        scheme: which scheme.
        gain: factor on the initial scale.

    Raises:
        ConfigError: weights that nothing initialises, if `_assert_if_not_initialized` is set.
    """
    _walk(block, "", _SCHEMES[xFormerWeightInit(scheme)], gain)


def _walk(module: nn.Module, path: str, scheme: Scheme, gain: float) -> None:
    custom = getattr(module, "init_weights", None)
    if callable(custom):
        custom()
        return
    if isinstance(module, (Part, nn.LayerNorm, nn.Embedding)):
        return  # initialised when they were made
    if isinstance(module, nn.Linear):
        plain = path.endswith(("q_proj", "k_proj"))
        scheme(module, "wrap_ff" in path.split("."), 1.0 if plain else gain)
        return
    if isinstance(module, nn.Conv2d):
        _lecun(module, gain)
        return
    if _assert_if_not_initialized and any(True for _ in module.parameters(recurse=False)):
        raise ConfigAssertionError(
            f"no scheme initialises this {type(module).__name__}", path=path, hint="give it an init_weights() method"
        )
    for name, child in module.named_children():
        _walk(child, f"{path}.{name}" if path else name, scheme, gain)


def _vit(linear: nn.Linear, feedforward: bool, gain: float) -> None:
    init.xavier_uniform_(linear.weight, gain=gain)
    _offset(linear, 1e-6 if feedforward else 0.0)


def _moco(linear: nn.Linear, feedforward: bool, gain: float) -> None:
    init.xavier_uniform_(linear.weight, gain=gain)
    _offset(linear, 0.0)


def _small(linear: nn.Linear, feedforward: bool, gain: float) -> None:
    if feedforward:
        _vit(linear, True, gain)
        return
    bound = gain * math.sqrt(6 / (linear.in_features + 4 * linear.out_features))
    init.uniform_(linear.weight, -bound, bound)
    _offset(linear, 0.0)


def _timm(linear: nn.Linear, feedforward: bool, gain: float) -> None:
    std = 0.02 * gain
    bound = math.sqrt(3.0) * std  # upstream cuts where a uniform distribution of this deviation would end
    init.trunc_normal_(linear.weight, std=std, a=-bound, b=bound)
    _offset(linear, 0.0)


def _lecun(conv: nn.Conv2d, gain: float) -> None:
    fan_in = conv.weight[0].numel()
    shrink = 0.87962566103423978  # standard deviation of a standard normal cut at +-2
    std = math.sqrt(gain / fan_in) / shrink
    init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
    if conv.bias is not None:
        init.zeros_(conv.bias)


def _offset(linear: nn.Linear, std: float) -> None:
    offset: Tensor | None = linear.bias
    if offset is not None:
        with torch.no_grad():
            offset.normal_(std=std) if std else offset.zero_()


_SCHEMES: dict[xFormerWeightInit, Scheme] = {
    xFormerWeightInit.Timm: _timm,
    xFormerWeightInit.ViT: _vit,
    xFormerWeightInit.Moco: _moco,
    xFormerWeightInit.Small: _small,
}
