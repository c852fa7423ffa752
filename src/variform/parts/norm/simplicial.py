"""Features as points on simplices."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem, nearest_divisors
from variform.parts.kinds import Norm

Size = Annotated[int, Field(gt=0)]


@register("simplicial")
class SimplicialNorm(Norm):
    """Simplicial embeddings (Lavoie et al. 2022, arXiv:2204.00616): each of `chunks` parts of the features sums to 1.

    y_c = softmax(x_c / temperature) for each chunk c of the last dimension.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        chunks: into how many parts the features are cut; divides `dim`.
        temperature: below 1 sharpens, above 1 flattens.
        dim: size of the last dimension.
    """

    def __init__(self, chunks: Size = 4, temperature: Annotated[float, Field(gt=0)] = 1.0, dim: Size = INHERIT) -> None:
        super().__init__()
        self.chunks = chunks
        self.temperature = temperature

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Chunks are of one size."""
        dim, chunks = facts["dim"], facts["chunks"]
        if dim % chunks:
            return [Problem("chunks", f"must divide dim = {dim}", chunks, nearest_divisors(dim, chunks))]
        return []

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Softmax within each chunk."""
        cut = x.reshape(*x.shape[:-1], self.chunks, x.shape[-1] // self.chunks) / self.temperature
        y: Tensor = cut.softmax(-1).flatten(-2)
        return y
