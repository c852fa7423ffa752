"""An embedding of another width than the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from variform.core.dims import Shape
from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.parts.embedding.around import AroundEmbedding
from variform.parts.kinds import Embedding, Output, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("factorised")
class FactorisedEmbedding(AroundEmbedding):
    """Embeds with `dim_embedding` features, then maps to `dim`: x = W E(inputs) + b (ALBERT, arXiv:1909.11942).

    Shapes:
        inputs: what the embedding takes -> [B, L, dim]

    Args:
        embedding: gives `dim_embedding` features.
        dim_embedding: features of the embedding.
        dim: features out.
        bias: learn an offset.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    def __init__(
        self,
        embedding: Embedding,
        dim_embedding: Size,
        dim: Size = INHERIT,
        bias: bool = True,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.project = Linear(dim_embedding, dim, bias, std=init_std)

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The embedding has its own width."""
        return {"dim": facts["dim_embedding"]}

    @classmethod
    def out_shape(cls, args: Facts, inputs: Shape, streams: Mapping[str, Shape]) -> Shape:
        """The embedding's, with `dim` features."""
        shape = super().out_shape(args, inputs, streams)
        return (*shape[:-1], args["dim"])

    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Embed and map."""
        x = self.embedding(inputs, streams)
        published: dict[str, Any] = {}
        if isinstance(x, tuple):
            x, published = x
        x = self.project(x)
        return (x, published) if published else x
