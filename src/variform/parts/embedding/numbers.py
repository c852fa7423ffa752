"""Numbers among tokens."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.embedding.around import AroundEmbedding
from variform.parts.kinds import Embedding, Output, Streams


@register("numbers")
class NumberEmbedding(AroundEmbedding):
    """Numbers as multiples of one token's vector (xVal, Golkar et al. 2023, arXiv:2310.02989): x = E(ids) * number.

    The token `number_id` stands for every number, and the stream `numbers` says which; other tokens are as they are,
    whatever the stream says of them. Without the stream each number is 1.

    Shapes:
        ids: [B, L] -> [B, L, dim]; numbers: [B, L]

    Args:
        embedding: of the tokens, without positions: they would be multiplied too.
        number_id: the token that stands for numbers.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"numbers"})

    def __init__(self, embedding: Embedding, number_id: Annotated[int, Field(ge=0)]) -> None:
        super().__init__()
        self.embedding = embedding
        self.number_id = number_id

    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Embed, and scale the numbers."""
        x = self.embedding(inputs, streams)
        numbers = streams.get("numbers")
        if numbers is None:
            return x
        if tuple(numbers.shape) != tuple(inputs.shape) or not numbers.is_floating_point():
            wanted = list(inputs.shape)
            raise ShapeError(
                f"numbers are floats of shape {wanted}, one a token; got {numbers.dtype} {list(numbers.shape)}"
            )
        factor = torch.where(inputs == self.number_id, numbers, 1.0).unsqueeze(-1)
        if isinstance(x, tuple):
            return x[0] * factor.to(x[0].dtype), x[1]
        return x * factor.to(x.dtype)
