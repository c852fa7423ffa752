"""LayerNorm, RMSNorm, ScaleNorm, and no norm at all."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.parts.kinds import Norm

Size = Annotated[int, Field(gt=0)]
Epsilon = Annotated[float, Field(gt=0)]


@register("layer_norm")
class LayerNorm(Norm):
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450).

    y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dimension.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        dim: size of the last dimension.
        eps: added to the variance.
        bias: learn an offset.
        gain: learn the weight; without it the weight is one.
    """

    def __init__(self, dim: Size = INHERIT, eps: Epsilon = 1e-5, bias: bool = True, gain: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim)) if gain else None
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain one, offset zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise the last dimension."""
        own = self._parameters  # see `Linear.forward`
        try:
            weight, bias = own["weight"], own["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        return torch.layer_norm(x, (self.dim,), weight, bias, self.eps)


@register("rms_norm")
class RMSNorm(Norm):
    """Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467).

    y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    Shapes:
        x: [..., dim] -> [..., dim]

    With a tiny `eps` it is sqrt(dim) times the l2-normalised x.

    Args:
        dim: size of the last dimension.
        eps: added to the mean square.
        gain: learn the weight; without it the weight is one.
        per_head: learn one weight for each of this many heads, for x of shape [B, per_head, L, dim].
    """

    def __init__(
        self, dim: Size = INHERIT, eps: Epsilon = 1e-6, gain: bool = True, per_head: Size | None = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.per_head = per_head is not None
        self.weight = None
        if gain:
            self.weight = nn.Parameter(torch.empty(dim) if per_head is None else torch.empty(per_head, 1, dim))
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Heads share no gain where there is none."""
        if facts["per_head"] is not None and not facts["gain"]:
            return [Problem("per_head", "there is no gain to be learned for each head: gain is off", facts["per_head"])]
        return []

    def reset_parameters(self) -> None:
        """Gain one."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise the last dimension."""
        weight = None if self.weight is None else self.weight.to(x.dtype)
        if self.per_head and weight is not None:
            return F.rms_norm(x, (self.dim,), None, self.eps) * weight
        return F.rms_norm(x, (self.dim,), weight, self.eps)


@register("scale_norm")
class ScaleNorm(Norm):
    """Scaled l2 normalisation (Nguyen and Salazar 2019, arXiv:1910.05895).

    y = g * x / max(||x||, eps), one learned scalar g, which starts at sqrt(dim).

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        dim: size of the last dimension; sets the initial scale.
        eps: smallest norm divided by.
    """

    def __init__(self, dim: Size = INHERIT, eps: Epsilon = 1e-5) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The scale that gives each feature unit variance."""
        nn.init.constant_(self.scale, math.sqrt(self.dim))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise the last dimension."""
        return F.normalize(x, dim=-1, eps=self.eps) * self.scale.to(x.dtype)
