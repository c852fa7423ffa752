"""A bias on scores that a small network makes of the distance."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.ops.distances import DistanceBias
from variform.ops.scores import ScoreMod
from variform.parts.kinds import Bias
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("dynamic")
class DynamicBias(Bias):
    """Dynamic position bias (CrossFormer, Wang et al. 2021, arXiv:2108.00154): S_ij <- S_ij + f(i - j)[h].

    f is a network of SiLU layers of one input and an output for each head; it knows distances that training did not
    meet. With `log` its input is sign(r) log(1 + |r|), as in Swin v2 (arXiv:2111.09883).

    Args:
        heads: number of query heads.
        hidden: features of a layer.
        layers: number of hidden layers.
        log: tell distances by their logarithm.
        norm: norm the features of each layer; the first has no offset, for its map has one.
    """

    def __init__(
        self, heads: Size = INHERIT, hidden: Size = 32, layers: Size = 2, log: bool = False, norm: bool = False
    ) -> None:
        super().__init__()
        self.log = log
        self.maps = nn.ModuleList([Linear(hidden if place else 1, hidden) for place in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(hidden, bias=place > 0) for place in range(layers)] if norm else [])
        self.out = Linear(hidden, heads)

    def forward(self) -> ScoreMod:
        """The modifier with the current parameters."""
        return DistanceBias(self.of_distances)

    def of_distances(self, distances: Tensor) -> Tensor:
        """[n] integers to [n, heads]."""
        dtype = self.out.weight.dtype
        # Integers above 256 are not all numbers of bfloat16: they are told apart in float32.
        x = distances.to(torch.promote_types(dtype, torch.float32)).unsqueeze(-1)
        if self.log:
            x = x.sign() * torch.log1p(x.abs())
        x = x.to(dtype)
        for place, layer in enumerate(self.maps):
            x = layer(x)
            x = F.silu(self.norms[place](x) if len(self.norms) else x)
        y: Tensor = self.out(x)
        return y
