"""Numbers among tokens."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.embedding.around import AroundEmbedding
from variform.parts.embedding.tokens import fitting
from variform.parts.kinds import Embedding, Output, Streams


@register("numbers")
class NumberEmbedding(AroundEmbedding):
    """Numbers as multiples of one token's vector (xVal, Golkar et al. 2023, arXiv:2310.02989): x = E(ids) * number.

    The token `number_id` stands for every number, and the stream `numbers` says which; other tokens are as they are,
    whatever the stream says of them. Without the stream each number is 1. What the stream `added` holds is added after.

    Shapes:
        ids: [B, L] -> [B, L, dim]; numbers: [B, L]; added: [B, L, dim]

    Args:
        embedding: of the tokens, without positions: they would be multiplied too.
        number_id: the token that stands for numbers.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"numbers", "added"})

    def __init__(self, embedding: Embedding, number_id: Annotated[int, Field(ge=0)]) -> None:
        super().__init__()
        self.embedding = embedding
        self.number_id = number_id

    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Embed, scale the numbers, and add what is to be added."""
        x = self.embedding(inputs, {**streams, "added": None})
        published: dict[str, Any] = {}
        if isinstance(x, tuple):
            x, published = x
        numbers, added = streams.get("numbers"), streams.get("added")
        if numbers is not None:
            if tuple(numbers.shape) != tuple(inputs.shape) or not numbers.is_floating_point():
                found = f"{numbers.dtype} {list(numbers.shape)}"
                raise ShapeError(f"numbers are floats of shape {list(inputs.shape)}, one a token; got {found}")
            x = x * torch.where(inputs == self.number_id, numbers, 1.0).unsqueeze(-1).to(x.dtype)
        if added is not None:
            x = x + fitting(added, x)
        return (x, published) if published else x
