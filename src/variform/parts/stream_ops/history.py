"""Streams that grow from layer to layer: their beginning, and skips that are put aside and joined again."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.kinds import Layer, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("begin_history")
class BeginHistory(Layer):
    """Begins a history: publishes an empty one, which later parts of the stack carry on by publishing it anew.

    A history is a tuple of tensors [B, L, dim] that grows, never one tensor that grows: nothing is copied. It ends
    with the stack.

    Shapes:
        x: [B, L, dim] -> the same

    Args:
        stream: its name.
    """

    takes_many: ClassVar[bool] = True

    def __init__(self, stream: str = "history") -> None:
        super().__init__()
        self.stream = stream

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """The history."""
        return (args.get("stream", "history"),)

    def forward(self, x: Tensor, streams: Streams) -> tuple[Tensor, dict[str, Any]]:
        """Begin."""
        return x, {self.stream: ()}


@register("keep_skip")
class KeepSkip(Layer):
    """Puts `x` on top of a pile that `begin_history` began, for a `join_skip` further on; `x` itself stays as it is.

    Shapes:
        x: [B, L, dim] -> the same

    Args:
        stream: the name of the pile.
    """

    takes_many: ClassVar[bool] = True

    def __init__(self, stream: str = "skips") -> None:
        super().__init__()
        self.stream = stream

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """The pile."""
        return (args.get("stream", "skips"),)

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The pile."""
        return frozenset({args.get("stream", "skips")})

    def forward(self, x: Tensor, streams: Streams) -> tuple[Tensor, dict[str, Any]]:
        """Put aside."""
        return x, {self.stream: (*streams[self.stream], x)}


@register("join_skip")
class JoinSkip(Layer):
    """Takes the newest tensor off a pile and joins it: x <- W [skip; x], so that the last layer meets the first one's.

    Long skips of a U-net (U-ViT, Bao et al. 2022, arXiv:2209.12152).

    Shapes:
        x: [B, L, dim] -> the same

    Args:
        stream: the name of the pile.
        dim: features.
        init_std: standard deviation of the initial weights; torch's default when None.

    Raises:
        ShapeError: nothing is left on the pile.
    """

    takes_many: ClassVar[bool] = True

    def __init__(self, stream: str = "skips", dim: Size = INHERIT, init_std: float | None = INHERIT) -> None:
        super().__init__()
        self.stream = stream
        self.combine = Linear(2 * dim, dim, False, std=init_std)

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """The pile."""
        return (args.get("stream", "skips"),)

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The pile."""
        return frozenset({args.get("stream", "skips")})

    def forward(self, x: Tensor, streams: Streams) -> tuple[Tensor, dict[str, Any]]:
        """Join."""
        pile = streams[self.stream]
        if not pile:
            raise ShapeError(f"no skip is left to join in {self.stream!r}: each join_skip needs a keep_skip before it")
        *rest, skip = pile
        return self.combine(torch.cat((skip, x), -1)), {self.stream: tuple(rest)}
