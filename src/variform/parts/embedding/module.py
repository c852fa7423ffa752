"""A user's own module as an embedding."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.errors import ConfigError, ShapeError
from variform.parts.embedding.tokens import fitting
from variform.parts.kinds import Embedding, Norm, Position, Streams


class ModuleEmbedding(Embedding):
    """Any module that maps ids to features, with an optional position code: x = norm(module(ids) + P + added).

    Keywords for the module come with each call, as `embedding_options`.

    The module stands in the spec as an object, so a model with one cannot be saved as YAML or JSON; register a part of
    its own for that. It is no registered part itself: it cannot be named in a file.

    Shapes:
        ids: [B, L] -> [B, L, dim]; added: [B, L, dim]

    Args:
        module: a `torch.nn.Module`; it is used as it is, by every model that is built of the spec.
        dim: features.
        position: a position code that is added.
        norm: a norm on the sum.
        vocab_size: number of different tokens.
    """

    name: ClassVar[str] = "module"
    reads: ClassVar[frozenset[str]] = frozenset({"positions", "added", "embedding_options"})

    def __init__(
        self,
        module: Any,
        dim: Annotated[int, Field(gt=0)] = INHERIT,
        position: Position | None = None,
        norm: Norm | None = None,
        vocab_size: Annotated[int, Field(gt=0)] | None = INHERIT,
    ) -> None:
        super().__init__()
        self.module: nn.Module = own_module(module)
        self.dim = dim
        self.vocab_size = vocab_size
        self.position = position
        self.norm = norm

    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """Token 0 throughout."""
        if length is None:
            raise ConfigError("the model has no max_seq_len: give length, the number of tokens")
        return torch.zeros(batch, length, dtype=torch.long)

    def forward(self, inputs: Tensor, streams: Streams) -> Tensor:
        """Embed by the module, add the positions."""
        x: Tensor = self.module(inputs, **(streams.get("embedding_options") or {}))
        if tuple(x.shape) != (*inputs.shape, self.dim):
            raise ShapeError(f"the embedding module gives {list(x.shape)}, and [B, L, {self.dim}] is needed")
        if self.position is not None:
            x = x + self.position(streams.get("positions"), inputs.shape[1], x)
        if streams.get("added") is not None:
            x = x + fitting(streams["added"], x)
        return x if self.norm is None else self.norm(x)


def own_module(module: Any) -> nn.Module:
    """The module, if it is one.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"a torch.nn.Module is needed, not a {type(module).__name__}", path="module")
    return module
