"""Language-model, tied, classification and identity heads."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from variform.core.dims import Shape
from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.core.spec import described
from variform.errors import ConfigError, Problem
from variform.ops.products import linear
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.kinds import Embedding, Head, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("lm")
class LMHead(Head):
    """Logits over the vocabulary: W x (+ b).

    Shapes:
        x: [B, L, dim] -> [B, L, vocab_size]

    Args:
        vocab_size: number of different tokens.
        dim: features.
        bias: learn an offset.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    def __init__(
        self, vocab_size: Size = INHERIT, dim: Size = INHERIT, bias: bool = False, init_std: float | None = INHERIT
    ) -> None:
        super().__init__()
        self.project = Linear(dim, vocab_size, bias, std=init_std)

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """A logit a token of the vocabulary."""
        return (*x[:-1], args["vocab_size"])

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Project."""
        return self.project(x)


@register("tied_lm")
class TiedLMHead(Head):
    """Logits by the token embedding's own vectors (Press and Wolf 2016, arXiv:1608.05859): scale * E x.

    Give it the model's embedding as a `Shared` part: what is shared is the module.

    Shapes:
        x: [B, L, dim] -> [B, L, vocab_size]

    Args:
        embedding: the shared token embedding.
        scale: factor on the logits.
    """

    def __init__(self, embedding: Embedding, scale: float = 1.0) -> None:
        super().__init__()
        if not isinstance(embedding, TokenEmbedding):
            raise ConfigError(f"a tied head needs a token embedding, not {type(embedding).__name__}", path="embedding")
        self.embedding = embedding
        self.scale = scale

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Only an embedding of tokens has a vector for each."""
        embedding = facts["embedding"]
        if issubclass(embedding.part, TokenEmbedding):
            return []
        hint = "share the inner embedding of tokens by its name, or take the head 'lm'"
        return [Problem("embedding", f"a tied head needs a token embedding, not {embedding.name!r}", hint=hint)]

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """A logit a token of the embedding."""
        return (*x[:-1], described(args["embedding"])["vocab_size"])

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Compare with every token's vector."""
        logits = linear(x, self.embedding.weight.to(x.dtype))
        return logits if self.scale == 1.0 else logits * self.scale


@register("classifier")
class ClassifierHead(Head):
    """One answer a sequence: pool the tokens, then W x + b.

    Shapes:
        x: [B, L, dim] -> [B, classes]

    Args:
        classes: number of classes.
        pool: "mean" over the valid tokens, the "first" token (a class token), or the "last" valid one.
        dim: features.
        bias: learn an offset.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    can: ClassVar[Can] = Can(decode=False)  # its answer is about a whole sequence, and a cached step sees a part of it
    reads: ClassVar[frozenset[str]] = frozenset({"valid"})

    def __init__(
        self,
        classes: Size,
        pool: Literal["mean", "first", "last"] = "mean",
        dim: Size = INHERIT,
        bias: bool = True,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.project = Linear(dim, classes, bias, std=init_std)

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """A logit a class."""
        return (x[0], args["classes"])

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Pool and project."""
        return self.project(pool_tokens(x, streams.get("valid"), self.pool))


@register("linear")
class LinearHead(Head):
    """Numbers for each token: W x (+ b), to predict features of any width.

    Shapes:
        x: [B, L, dim] -> [B, L, outputs]

    Args:
        outputs: how many numbers.
        dim: features.
        bias: learn an offset.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    def __init__(
        self, outputs: Size, dim: Size = INHERIT, bias: bool = False, init_std: float | None = INHERIT
    ) -> None:
        super().__init__()
        self.project = Linear(dim, outputs, bias, std=init_std)

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """The numbers in place of the features."""
        return (*x[:-1], args["outputs"])

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Project."""
        return self.project(x)


@register("pool")
class PoolHead(Head):
    """One vector a sequence, without a projection.

    Shapes:
        x: [B, L, dim] -> [B, dim]

    Args:
        pool: "mean" over the valid tokens, the "first" token, or the "last" valid one.
    """

    can: ClassVar[Can] = Can(decode=False)  # its answer is about a whole sequence, and a cached step sees a part of it
    reads: ClassVar[frozenset[str]] = frozenset({"valid"})

    def __init__(self, pool: Literal["mean", "first", "last"] = "mean") -> None:
        super().__init__()
        self.pool = pool

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """One vector a row."""
        return (x[0], x[2])

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Pool."""
        return pool_tokens(x, streams.get("valid"), self.pool)


def pool_tokens(x: Tensor, valid: Tensor | None, pool: str) -> Tensor:
    """[B, L, dim] to [B, dim]; padding does not count. "first" is the first valid token."""
    if valid is None:
        return x.mean(1) if pool == "mean" else x[:, 0 if pool == "first" else -1]
    if pool == "mean":
        weight = valid.to(x.dtype).unsqueeze(-1)
        return torch.where(valid.unsqueeze(-1), x, x.new_zeros(())).sum(1) / weight.sum(1).clamp(min=1)
    steps = torch.arange(x.shape[1], device=x.device)
    if pool == "first":
        index = torch.where(valid, steps, x.shape[1] - 1).amin(1)
    else:
        index = torch.where(valid, steps, 0).amax(1)
    return x[torch.arange(x.shape[0], device=x.device), index]
