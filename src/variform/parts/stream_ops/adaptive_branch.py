"""A branch whose scale is read off a condition."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.parts.kinds import FeedForward, Layer, Mixer, Output, Streams, call
from variform.parts.norm.adaptive import by_token

Size = Annotated[int, Field(gt=0)]


@register("adaptive_branch")
class AdaptiveBranch(Layer):
    """Runs a part and scales what it gives by a condition: y = sigmoid(W c + b) * body(x).

    After DiT's adaptive scale before the residual sum (Peebles and Xie 2022, arXiv:2212.09748): W starts at zero and
    b below it, so that branches begin small and alike.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; condition: [B, dim_condition], or [B, L, dim_condition] for each token its own

    Args:
        body: the mixer, feedforward or layer that does the work.
        dim: features.
        dim_condition: features of the condition.
        start: initial b.

    Raises:
        ShapeError: there is no condition, or it does not fit.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"condition"})
    takes_views: ClassVar[bool] = True

    def __init__(
        self,
        body: Mixer | FeedForward | Layer,
        dim: Size = INHERIT,
        dim_condition: Size = INHERIT,
        start: float = -2.0,
    ) -> None:
        super().__init__()
        self.body = body
        self.start = start
        self.weight = nn.Parameter(torch.empty(dim, dim_condition))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No effect of the condition, and the same small scale for all."""
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, self.start)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run and scale."""
        published: dict[str, Any] = {}
        condition = by_token(streams.get("condition"), x, self.weight.shape[1], "an adaptive branch")
        scale = torch.sigmoid(F.linear(condition, self.weight, self.bias))
        y = call(self.body, x, streams, "body", published) * scale
        return (y, published) if published else y
