"""Positions on top of an embedding that has none of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.dims import Shape
from variform.core.part import Facts
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.parts.kinds import Embedding, Norm, Output, Position, Streams


@register("placed")
class PlacedEmbedding(Embedding):
    """Adds a position code to another embedding: x = drop(norm(E(inputs) + P[positions])).

    For token vectors that are shared by places of different positions, an encoder and a decoder say: what is shared is
    the embedding, and each place has its own code.

    Shapes:
        inputs: what the embedding takes -> [B, L, dim]

    Args:
        embedding: gives the features.
        position: the position code that is added.
        norm: a norm on the sum.
        dropout: probability of zeroing a feature, in training.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"positions"})

    def __init__(
        self,
        embedding: Embedding,
        position: Position,
        norm: Norm | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.position = position
        self.norm = norm
        self.dropout = dropout

    @classmethod
    def takes(cls, args: Facts) -> str:
        """What the embedding inside does; ids as long as it is not known."""
        inner = described(args.get("embedding"))
        content: str = inner.part.takes(inner.args) if isinstance(inner, Spec) else "ids"
        return content

    @classmethod
    def in_sizes(cls, args: Facts) -> tuple[int | str, ...]:
        """What the embedding inside does."""
        inner = described(args["embedding"])
        sizes: tuple[int | str, ...] = inner.part.in_sizes(inner.args)
        return sizes

    @classmethod
    def out_shape(cls, args: Facts, inputs: Shape, streams: Mapping[str, Shape]) -> Shape:
        """The embedding's."""
        inner = described(args["embedding"])
        shape: Shape = inner.part.out_shape(inner.args, inputs, streams)
        return shape

    @property
    def vocab_size(self) -> int | None:
        """The number of different tokens, where the embedding reads tokens."""
        size: int | None = getattr(self.embedding, "vocab_size", None)
        return size

    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """The embedding's."""
        return self.embedding.example_inputs(batch, length)

    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Embed and add the positions."""
        x = self.embedding(inputs, streams)
        published: dict[str, Any] = {}
        if isinstance(x, tuple):
            x, published = x
        x = x + self.position(streams.get("positions"), x.shape[1], x)
        if self.norm is not None:
            x = self.norm(x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return (x, published) if published else x
