"""Logits by the vectors of an embedding, as a step of a program."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from variform.core.dims import Shape
from variform.core.part import Facts
from variform.core.registry import register
from variform.core.spec import described
from variform.errors import ConfigError, Problem
from variform.ops.products import linear
from variform.parts.kinds import Op
from variform.parts.op.tokenwise import EmbeddingOp, last_size


@register("unembed")
class Unembed(Op):
    """y = scale * E x with the vectors of an embedding (Press and Wolf 2016, arXiv:1608.05859).

    Give it the embedding of another step as a `Shared` part: what is shared is the module.

    Shapes:
        x: [..., dim] -> [..., classes]

    Args:
        embedding: the embedding.
        scale: factor on the logits.
    """

    accepts: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"features"}),)

    def __init__(self, embedding: Op, scale: float = 1.0) -> None:
        super().__init__()
        if not isinstance(embedding, EmbeddingOp):
            raise ConfigError(f"unembed needs an embedding, not {type(embedding).__name__}", path="embedding")
        self.embedding = embedding
        self.scale = scale

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Only an embedding has a vector for each id."""
        embedding = facts["embedding"]
        if issubclass(embedding.part, EmbeddingOp):
            return []
        return [Problem("embedding", f"unembed needs an embedding, not {embedding.kind} {embedding.name!r}")]

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The last size becomes the number of classes."""
        embedding = described(args["embedding"])
        last_size("unembed", embedding["out"], inputs[0])
        return ((*inputs[0][:-1], embedding["classes"]),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compare with every vector."""
        (x,) = inputs
        logits = linear(x, self.embedding.weight.to(x.dtype))
        return logits if self.scale == 1.0 else logits * self.scale
