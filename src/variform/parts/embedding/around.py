"""What embeddings around another embedding have in common."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from variform.core.dims import Shape
from variform.core.part import Facts
from variform.core.spec import Spec, described
from variform.parts.kinds import Embedding


class AroundEmbedding(Embedding):
    """An embedding that takes what the one in its slot `embedding` takes, and changes what comes out."""

    embedding: Embedding

    @classmethod
    def takes(cls, args: Facts) -> str:
        """What the embedding inside does; ids as long as it is not known."""
        inner = described(args.get("embedding"))
        content: str = inner.part.takes(inner.args) if isinstance(inner, Spec) else "ids"
        return content

    @classmethod
    def in_sizes(cls, args: Facts) -> tuple[int | str, ...]:
        """What the embedding inside does."""
        inner = described(args["embedding"])
        sizes: tuple[int | str, ...] = inner.part.in_sizes(inner.args)
        return sizes

    @classmethod
    def out_shape(cls, args: Facts, inputs: Shape, streams: Mapping[str, Shape]) -> Shape:
        """The embedding's."""
        inner = described(args["embedding"])
        shape: Shape = inner.part.out_shape(inner.args, inputs, streams)
        return shape

    @property
    def vocab_size(self) -> int | None:
        """The number of different tokens, where the embedding reads tokens."""
        size: int | None = getattr(self.embedding, "vocab_size", None)
        return size

    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """The embedding's, without what stands before it."""
        return self.embedding.example_inputs(batch, length)
