"""An embedding to which the embeddings of further ids are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError, did_you_mean
from variform.parts.embedding.around import AroundEmbedding
from variform.parts.kinds import Embedding, Norm, Output, Streams


@register("summed")
class SummedEmbedding(AroundEmbedding):
    """Adds the embeddings of further ids of each token: x = norm(E(ids) + sum_n E_n(ids_n)).

    Types of segments (BERT, Devlin et al. 2018, arXiv:1810.04805), or speakers, say. The ids are given by name in the
    stream `further_ids`, all of them in every call.

    Shapes:
        ids: [B, L] -> [B, L, dim]; further_ids: {name: [B, L]}

    Args:
        embedding: of the tokens, with their positions.
        further: an embedding for each kind of further ids.
        names: what they are called, one a kind.
        norm: a norm on the sum.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"further_ids"})

    def __init__(
        self,
        embedding: Embedding,
        further: Sequence[Embedding] = (),
        names: tuple[str, ...] = (),
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.further = nn.ModuleList(further)
        self.names = tuple(names)
        self.norm = norm

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Every further embedding has a name of its own."""
        names = facts["names"]
        if len(names) == len(facts["further"]) == len(set(names)):
            return []
        return [Problem("names", f"one name of its own for each of the {len(facts['further'])} embeddings", names)]

    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Embed everything and add it up."""
        x = self.embedding(inputs, streams)
        published: dict[str, Any] = {}
        if isinstance(x, tuple):
            x, published = x
        given = streams.get("further_ids") or {}
        if set(given) != set(self.names):
            for name in given:
                if name not in self.names:
                    raise ShapeError(f"there are no further ids {name!r} here; {did_you_mean(name, self.names)}")
            lacking = ", ".join(name for name in self.names if name not in given)
            raise ShapeError(f"further ids are needed in every call: {lacking}")
        alone = {**streams, "added": None}  # which the tokens' own embedding has added
        for name, part in zip(self.names, self.further, strict=True):
            ids = given[name]
            if tuple(ids.shape) != tuple(inputs.shape[:2]):
                wanted = list(inputs.shape[:2])
                raise ShapeError(f"the further ids {name!r} have shape {list(ids.shape)}, and the tokens {wanted}")
            x = x + part(ids, alone)
        if self.norm is not None:
            x = self.norm(x)
        return (x, published) if published else x
