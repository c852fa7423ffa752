"""Simplicial embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.xformers.building import verify
from variform.dialects.xformers.errors import CallError
from variform.errors import nearest_divisors
from variform.parts.norm.simplicial import SimplicialNorm


@dataclass
class SimplicialEmbeddingConfig:
    """The configuration of `SimplicialEmbedding`."""

    L: int
    temperature: float | None = None


class SimplicialEmbedding(nn.Module):
    """Cuts the features into L chunks and takes the softmax of each (Lavoie et al. 2022, arXiv:2204.00616).

    Shapes:
        x: [B, S, E] -> [B, S, E], L divides E

    Args:
        L: number of chunks.
        temperature: divides the features first; 1 by default.
    """

    def __init__(
        self, L: Annotated[int, Field(gt=0)], temperature: Annotated[float, Field(gt=0)] | None = None
    ) -> None:
        super().__init__()
        verify(SimplicialEmbedding, L=L, temperature=temperature)
        self.L = L
        self.temperature = temperature
        self.norm = SimplicialNorm(chunks=L, temperature=temperature or 1.0, dim=L)

    @classmethod
    def from_config(cls, config: SimplicialEmbeddingConfig) -> Any:
        """Build from a configuration dataclass."""
        return cls(config.L, config.temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Put each chunk on a simplex; the input is not changed."""
        if x.shape[-1] % self.L:
            hint = nearest_divisors(x.shape[-1], self.L)
            raise CallError(f"the embedding dimension {x.shape[-1]} is not divisible by L = {self.L}; {hint}")
        return self.norm(x)

    @property
    def spec(self) -> Spec:
        """The native part."""
        return SimplicialNorm.spec(chunks=self.L, temperature=self.temperature or 1.0)
