"""Heads that pool the tokens first: a mean, one token, or learned queries that attend to them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.dims import Shape
from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.parts.head.heads import pool_tokens
from variform.parts.head.mixture import inner_shape
from variform.parts.kinds import Head, Layer, Mixer, Stack, Streams

Size = Annotated[int, Field(gt=0)]


@register("pooled")
class PooledHead(Head):
    """Pools the tokens to one vector and lets another head answer: head(pool(x)).

    Shapes:
        x: [B, L, dim] -> what the head gives for [B, dim]; [B, dim] without one

    Args:
        head: what answers; None gives the vector itself.
        pool: "mean" over the valid tokens, the "first" valid token, or the "last".
    """

    can: ClassVar[Can] = Can(decode=False)  # its answer is about a whole sequence, and a cached step sees a part of it
    reads: ClassVar[frozenset[str]] = frozenset({"valid"})

    def __init__(self, head: Head | None = None, pool: Literal["mean", "first", "last"] = "mean") -> None:
        super().__init__()
        self.head = head
        self.pool = pool

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """What the head makes of one vector a row."""
        return inner_shape(args, (x[0], x[2]))

    def pooled(self, x: Tensor, streams: Streams) -> Tensor:
        """[B, L, dim] to [B, dim]; padding does not count."""
        return pool_tokens(x, streams.get("valid"), self.pool)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Pool and answer."""
        vector = self.pooled(x, streams)
        return vector if self.head is None else self.head(vector, streams)


@register("attention_pool")
class AttentionPoolHead(Head):
    """Learned queries attend to the tokens: y = body(Q, context = x), and a head answers for each query.

    Pooling by attention (Set Transformer, Lee et al. 2018, arXiv:1810.00825). `body` is a cross attention, or a stack
    of layers that cross attend; padding is not attended.

    Shapes:
        x: [B, L, dim] -> [B, queries, dim_query], or what the head gives for that

    Args:
        body: what attends; its `context` is x.
        queries: how many vectors come out.
        dim_query: features of the queries, and of the body.
        head: what answers for each query; None gives the vectors themselves.
        dim: features of x.
        std: standard deviation of the initial queries.
        residual: add the queries to what the body gives.
    """

    can: ClassVar[Can] = Can(decode=False)  # its answer is about a whole sequence, and a cached step sees a part of it
    reads: ClassVar[frozenset[str]] = frozenset({"valid"})
    closes: ClassVar[frozenset[str]] = frozenset({"context", "context_mask", "positions", "segments", "mask"})

    def __init__(
        self,
        body: Mixer | Layer | Stack,
        queries: Size = 1,
        dim_query: Size | None = None,
        head: Head | None = None,
        dim: Size = INHERIT,
        std: Annotated[float, Field(ge=0)] = 0.01,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.std = std
        self.residual = residual
        self.queries = nn.Parameter(torch.empty(queries, dim_query or dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal queries."""
        nn.init.normal_(self.queries, 0.0, self.std)

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The body has the queries' width, and its context that of the tokens; nothing in it is causal."""
        size = facts["dim_query"] or facts["dim"]
        return {"dim": size, "dim_context": facts["dim"], "causal": False} if slot == "body" else {"dim": size}

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """A vector a query, or what the head makes of it."""
        return inner_shape(args, (x[0], args["queries"], args["dim_query"] or x[2]))

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Attend and answer."""
        pooled = self.attended(x, streams.get("valid"))
        return pooled if self.head is None else self.head(pooled, streams)

    def attended(self, x: Tensor, valid: Tensor | None, queries: Tensor | None = None) -> Tensor:
        """What the queries see, or others in their place: [B, L, dim] -> [B, queries, dim_query]."""
        queries = self.queries.to(x.dtype).expand(x.shape[0], -1, -1) if queries is None else queries
        pooled = self.body(queries, {"context": x, "context_mask": valid})
        assert isinstance(pooled, Tensor)
        return pooled + queries if self.residual else pooled
