"""Zeros at padding."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from variform.core.registry import register
from variform.parts.kinds import FeedForward, Layer, Mixer, Output, Streams, call


@register("zero_padding")
class ZeroPadding(Layer):
    """Runs a part and puts zeros where `valid` marks padding: y = valid * body(x).

    Padding never reaches a real token anyway; this fixes what the padded places themselves hold.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        body: the mixer, feedforward or layer that does the work.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"valid"})
    takes_views: ClassVar[bool] = True

    def __init__(self, body: Mixer | FeedForward | Layer) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run and clear."""
        published: dict[str, Any] = {}
        y = call(self.body, x, streams, "body", published)
        valid = streams.get("valid")
        if valid is not None:
            y = torch.where(valid.unsqueeze(-1), y, y.new_zeros(()))
        return (y, published) if published else y
