"""Position embeddings that users register with upstream's decorator, as parts of the core."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from variform.core.part import Can, Facts
from variform.dialects.xformers.adopting import Adopted, adopt
from variform.dialects.xformers.errors import CallError
from variform.dialects.xformers.utils import Item
from variform.parts.kinds import Embedding, Streams


def adopt_embedding(name: str, item: Item) -> None:
    """Let a position embedding of the dialect be a part of the core as well."""
    adopt(name, item, lambda trial: AdoptedTokens if _reads_ids(trial) else AdoptedFeatures)


class _Adopted(Adopted, Embedding):
    """An embedding of a user, which counts positions by itself."""

    reads: ClassVar[frozenset[str]] = frozenset({"valid", "segments"})

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.module = self.make(arguments)
        self.dim = int(arguments["dim_model"])
        self.vocab_size: int | None = arguments.get("vocab_size")

    @classmethod
    def can_of(cls, trial: Any, causal: bool) -> Can:
        """Where the tokens stand is not told to it: neither padding nor documents nor a beginning of steps."""
        return Can(True, False, True, False, True, True, False)

    def forward(self, inputs: Tensor, streams: Streams) -> Tensor:
        """Embed.

        Raises:
            CallError: padding or documents, in which positions do not count as it counts them.
        """
        for name in sorted(self.reads):
            if streams.get(name) is not None:
                raise CallError(f"the embedding {self.name!r} counts positions by itself: it cannot honour {name!r}")
        return self.module(inputs)  # type: ignore[no-any-return]


class AdoptedTokens(_Adopted):
    """One that reads token ids."""

    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """The first id."""
        return torch.zeros(batch, length or 2, dtype=torch.long)


class AdoptedFeatures(_Adopted):
    """One that reads features."""

    @classmethod
    def takes(cls, args: Facts) -> str:
        """Features."""
        return "features"

    @classmethod
    def in_sizes(cls, args: Facts) -> tuple[int | str, ...]:
        """Features as the model has them."""
        return ("B", "L", args["dim"])

    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """Zeros."""
        return torch.zeros(batch, length or 2, self.dim)


def _reads_ids(trial: nn.Module) -> bool:
    return any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in trial.modules())
