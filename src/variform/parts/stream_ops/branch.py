"""What is done to a branch before it is normed or joined: factors, dropout, the scale at which it begins."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.errors import ConfigError
from variform.parts.kinds import FeedForward, Layer, Mixer, Output, Projection, Streams, call
from variform.parts.linear import Linear


@register("scaled_branch")
class ScaledBranch(Layer):
    """Runs a part and scales what it gives: y = factor * gamma * drop(body(x)).

    For branches that something else than a plain sum takes: a norm, a gated residual, several residual streams. Before
    a plain sum, residuals `scaled` and `layer_scale` do the same.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        body: the mixer, feedforward or layer that does the work.
        factor: a constant factor.
        gain: initial value of a learned factor gamma a feature (LayerScale, arXiv:2103.17239); None for none.
        dropout: probability of zeroing a feature, in training.
        dim: features.
    """

    takes_views: ClassVar[bool] = True

    def __init__(
        self,
        body: Mixer | FeedForward | Layer,
        factor: float = 1.0,
        gain: float | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        dim: Annotated[int, Field(gt=0)] = INHERIT,
    ) -> None:
        super().__init__()
        self.body = body
        self.factor = factor
        self.dropout = dropout
        self.initial = gain
        self.gain = None if gain is None else nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The learned factors at their initial value."""
        if self.gain is not None and self.initial is not None:
            nn.init.constant_(self.gain, self.initial)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run and scale."""
        published: dict[str, Any] = {}
        y = call(self.body, x, streams, "body", published)
        if self.training and self.dropout:
            y = F.dropout(y, self.dropout)
        if self.gain is not None:
            y = y * self.gain
        if self.factor != 1.0:
            y = y * self.factor
        return (y, published) if published else y


@register("branch_start")
class BranchStart(Layer):
    """Runs a part whose last map begins with weights of another size: N(0, scale^2 / fan_in), and no offset.

    0 lets a branch begin as nothing (Goyal et al. 2017, arXiv:1706.02677; Fixup, arXiv:1901.09321); (2 l)^(-1/2) in
    layer l keeps what all branches write together of one size whatever the depth. The function is the body's.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        body: the mixer, feedforward or layer that does the work.
        scale: of the last map's weights, in units of fan_in^(-1/2).

    Raises:
        ConfigError: the body has no last map of its own (`out` or `down`).
    """

    takes_views: ClassVar[bool] = True

    def __init__(self, body: Mixer | FeedForward | Layer, scale: Annotated[float, Field(ge=0)] = 0.0) -> None:
        super().__init__()
        self.body = body
        last = _last_map(body)
        last.std = scale * last.in_features**-0.5  # held by the map, so that it holds when parameters are reset
        last.reset_parameters()

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run."""
        published: dict[str, Any] = {}
        y = call(self.body, x, streams, "body", published)
        return (y, published) if published else y


def _last_map(body: nn.Module) -> Linear:
    part = body
    while isinstance(inner := getattr(part, "body", None), nn.Module):
        part = inner
    for name in ("out", "down", "output"):
        found = getattr(part, name, None)
        found = getattr(found, "out", None) if isinstance(found, Projection) else found
        if isinstance(found, Linear):
            return found
    raise ConfigError(f"{getattr(part, 'name', type(part).__name__)!r} has no last map whose start could be scaled")
