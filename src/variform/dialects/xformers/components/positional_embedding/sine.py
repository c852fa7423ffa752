"""Fixed sines and cosines."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.positional_embedding.base import PlacedEmbedding, PositionEmbeddingConfig
from variform.dialects.xformers.components.positional_embedding.registry import (
    POSITION_EMBEDDING_REGISTRY,
    register_positional_embedding,
)
from variform.errors import ShapeError
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.position.absolute import SinusoidalPosition

Size = Annotated[int, Field(gt=0)]


@register_positional_embedding("sine", PositionEmbeddingConfig)
class SinePositionalEmbedding(PlacedEmbedding):
    """Adds sines and cosines of geometric wavelengths (Vaswani et al. 2017, arXiv:1706.03762).

    Shapes:
        x: [B, S, dim_model], or [B, S] numbers that are added to every feature -> [B, S, dim_model]

    Args:
        dim_model: features; even.
        seq_len: the longest sequence; None for no limit.
        **superset: keys of other position embeddings, listed in `dropped`.
    """

    def __init__(self, dim_model: Size, seq_len: Size | None = None, **superset: Any) -> None:
        super().__init__()
        verify(SinePositionalEmbedding, dim_model=dim_model, seq_len=seq_len)
        self.dropped = superset_keys(POSITION_EMBEDDING_REGISTRY, superset, "sine")
        self.dim_model = dim_model
        self.seq_len = seq_len
        self.code: SinusoidalPosition = build(SinusoidalPosition.spec(dim=dim_model))

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Add the codes of the positions."""
        x = x.unsqueeze(-1) if x.dim() == 2 else x
        if self.seq_len is not None and x.shape[1] > self.seq_len:
            raise ShapeError(f"the sequence has {x.shape[1]} tokens, and seq_len is {self.seq_len}")
        like = x if x.is_floating_point() else x.float()
        return like + self.code(positions, x.shape[1], like)

    @property
    def spec(self) -> Spec:
        """The native embedding of features with this code."""
        return FeatureEmbedding.spec(dim=self.dim_model, position=SinusoidalPosition.spec())

    @property
    def longest(self) -> int | None:
        """The longest sequence, where it is limited."""
        return self.seq_len
