"""Positions on top of an embedding that has none of its own."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.registry import register
from variform.parts.embedding.around import AroundEmbedding
from variform.parts.kinds import Embedding, Norm, Output, Position, Streams


@register("placed")
class PlacedEmbedding(AroundEmbedding):
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
