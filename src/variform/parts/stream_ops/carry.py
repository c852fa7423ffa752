"""Publish the residual stream under a name, and add it back further on (long skips)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from variform.core.dims import Shape
from variform.core.part import Facts
from variform.core.registry import register
from variform.parts.kinds import Layer, Streams


@register("publish")
class Publish(Layer):
    """Publishes `x` as the stream `stream`, unchanged, for a later part of the same stack.

    Shapes:
        x: [B, L, dim] -> the same

    Args:
        stream: the name.
    """

    def __init__(self, stream: str) -> None:
        super().__init__()
        self.stream = stream

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """The named stream."""
        return (args["stream"],)

    @classmethod
    def out_streams(cls, args: Facts, x: Shape, streams: Mapping[str, Shape]) -> dict[str, Shape]:
        """That of `x`."""
        return {args["stream"]: x}

    def forward(self, x: Tensor, streams: Streams) -> tuple[Tensor, dict[str, Any]]:
        """Publish."""
        return x, {self.stream: x}


@register("add_stream")
class AddStream(Layer):
    """Adds a published stream to `x` (a long skip, as in U-ViT, arXiv:2209.12152).

    Shapes:
        x: [B, L, dim] -> the same

    Args:
        stream: the name.
    """

    def __init__(self, stream: str) -> None:
        super().__init__()
        self.stream = stream

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The named stream."""
        return frozenset({args["stream"]})

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Add."""
        y: Tensor = x + streams[self.stream]
        return y
