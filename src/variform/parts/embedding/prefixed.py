"""Features in front of the embedded tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.dims import Shape, shape_text
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.embedding.around import AroundEmbedding
from variform.parts.kinds import Embedding, Output, Streams


@register("prefixed")
class PrefixedEmbedding(AroundEmbedding):
    """Puts the stream `prefix` before the embedded tokens: x = drop([prefix; E(ids)]).

    So a language model reads an image (PaLI, Chen et al. 2022, arXiv:2209.06794) or a soft prompt. Without a prefix
    it is the embedding alone.

    Shapes:
        ids: [B, L] -> [B, P + L, dim]; prefix: [B, P, dim]

    Args:
        embedding: of the tokens.
        dropout: probability of zeroing a feature of prefix and tokens, in training.
        gradient: the part of the gradient that reaches prefix and tokens.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"prefix", "prefix_valid"})

    def __init__(
        self,
        embedding: Embedding,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        gradient: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.gradient = gradient
        self.dropout = dropout

    @classmethod
    def out_shape(cls, args: Facts, inputs: Shape, streams: Mapping[str, Shape]) -> Shape:
        """The embedding's, and the prefix in front where there is one."""
        shape = super().out_shape(args, inputs, streams)
        prefix = streams.get("prefix")
        if prefix is None:
            return shape
        if len(prefix) != 3 or (prefix[0], prefix[2]) != (shape[0], shape[2]):
            raise ShapeError(f"the prefix is [B, P, dim] = ({shape[0]}, P, {shape[2]}), not {shape_text(prefix)}")
        return (shape[0], prefix[1] + shape[1], shape[2])

    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Embed the tokens and put the prefix in front."""
        x = self.embedding(inputs, streams)
        published: dict[str, Any] = {}
        if isinstance(x, tuple):
            x, published = x
        x = self.joined(x, streams)
        watch = streams.get("watch")
        if watch is not None:
            watch.leaves(self, x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return (x, published) if published else x

    def joined(self, x: Tensor, streams: Streams) -> Tensor:
        """The prefix before embedded tokens x, [B, L, dim] -> [B, P + L, dim], without dropout."""
        prefix = streams.get("prefix")
        if prefix is not None:
            if prefix.shape[0] != x.shape[0] or prefix.shape[2] != x.shape[2]:
                raise ShapeError(
                    f"the prefix must have shape [{x.shape[0]}, length, {x.shape[2]}], not {list(prefix.shape)}"
                )
            x = torch.cat((prefix.to(x.dtype), x), 1)
        if self.gradient != 1.0:
            x = x * self.gradient + x.detach() * (1.0 - self.gradient)
        return x
