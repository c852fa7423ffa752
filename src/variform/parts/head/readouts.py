"""Heads around heads: answers on request, an axis of one left out; and a head that predicts features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.dims import Shape
from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.parts.head.mixture import inner_shape
from variform.parts.kinds import Head, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("squeezed")
class SqueezedHead(Head):
    """Leaves out the last axis of another head's answer, where it is 1: a number a token, [B, L, 1] -> [B, L].

    Shapes:
        x: what the head takes -> what it gives, without a last axis of 1

    Args:
        head: what answers.
    """

    can: ClassVar[Can] = Can(decode=False)  # a number a token is no distribution to draw from

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """The head's, without a last axis of 1."""
        shape = inner_shape(args, x)
        return shape[:-1] if shape[-1] == 1 else shape

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Answer, and leave the axis out."""
        answer = self.head(x, streams)
        return answer.squeeze(-1)


@register("readouts")
class Readouts(Head):
    """A head that is the model's, and others that answer on request: `model.head.answer(0, hidden, {})`.

    For objectives beside the main one, whose answers a forward pass does not pay for.

    Shapes:
        x: what the main head takes -> what it gives

    Args:
        main: what the model answers with.
        further: heads that are asked by their place.
    """

    def __init__(self, main: Head, further: Sequence[Head] = ()) -> None:
        super().__init__()
        self.main = main
        self.further = nn.ModuleList(further)

    @classmethod
    def steps(cls, slot: str) -> bool:
        """Decoding asks the main head alone."""
        return slot != "further"

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """The main head's."""
        return inner_shape(args, x, "main")

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Ask the main head."""
        answer: Tensor = self.main(x, streams)
        return answer

    def answer(self, place: int, x: Tensor, streams: Streams) -> Tensor:
        """Ask one of the further heads."""
        found: Tensor = self.further[place](x, streams)
        return found


@register("next_embedding")
class NextEmbeddingHead(Head):
    """Predicts features, such as the embedding of the next token: W_2 silu(W_1 x).

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        dim: features.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    can: ClassVar[Can] = Can(decode=False)  # features are no distribution to draw from

    def __init__(self, dim: Size = INHERIT, init_std: float | None = INHERIT) -> None:
        super().__init__()
        self.up = Linear(dim, dim, bias=False, std=init_std)
        self.down = Linear(dim, dim, bias=False, std=init_std)

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """Features of the same size."""
        return x

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Predict."""
        return self.down(F.silu(self.up(x)))
