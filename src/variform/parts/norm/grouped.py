"""Norms of groups of features."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem, nearest_divisors
from variform.parts.kinds import Norm

Size = Annotated[int, Field(gt=0)]


@register("grouped_rms_norm")
class GroupedRMSNorm(Norm):
    """Root mean square normalisation of each group of neighbouring features: y_g = x_g / sqrt(mean(x_g^2) + eps) * w_g.

    On queries and keys it is cosine similarity group by group.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        dim: size of the last dimension.
        groups: how many there are, a divisor of `dim`.
        eps: added to the mean square.
        gain: learn the weight; without it the weight is one.
        per_head: learn one weight for each of this many heads, for x of shape [B, per_head, L, dim].
    """

    def __init__(
        self,
        dim: Size = INHERIT,
        groups: Size = 2,
        eps: Annotated[float, Field(gt=0)] = 1e-6,
        gain: bool = True,
        per_head: Size | None = None,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = None
        if gain:
            self.weight = nn.Parameter(torch.empty(dim) if per_head is None else torch.empty(per_head, 1, dim))
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Groups are of one size, and of more than one feature, of which nothing but the sign would be left."""
        dim, groups, found = facts["dim"], facts["groups"], []
        if dim % groups:
            found.append(Problem("groups", f"must divide dim = {dim}", groups, nearest_divisors(dim, groups)))
        elif dim == groups:
            found.append(Problem("groups", "a group of one feature would keep its sign alone", groups))
        if facts["per_head"] is not None and not facts["gain"]:
            message = "there is no gain to be learned for each head: gain is off"
            found.append(Problem("per_head", message, facts["per_head"]))
        return found

    def reset_parameters(self) -> None:
        """Gain one."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise each group."""
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        y = F.rms_norm(grouped, grouped.shape[-1:], None, self.eps).flatten(-2)
        return y if self.weight is None else y * self.weight.to(x.dtype)
