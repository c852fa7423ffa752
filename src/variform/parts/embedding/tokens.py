"""Token embedding."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.errors import ConfigError, ShapeError, TokenIdError
from variform.parts.kinds import Embedding, Norm, Position, Streams

Size = Annotated[int, Field(gt=0)]


@register("tokens")
class TokenEmbedding(Embedding):
    """A learned vector for each token: x = drop(norm(E[ids] * scale + P[positions] + added)).

    A position code is optional. `added` is a stream of features, which may be left out: those of an earlier pass
    (self-conditioning), say. With `unit`, vectors have length 1 (FixNorm, Nguyen and Salazar 2019, arXiv:1910.05895):
    E[ids] / |E[ids]|.

    Shapes:
        ids: [B, L] integers in [0, vocab_size) -> [B, L, dim]; added: [B, L, dim]

    Args:
        vocab_size: number of different tokens.
        dim: features.
        position: a position code that is added.
        norm: a norm on the sum.
        scale: multiply the token vectors by sqrt(dim) (Vaswani et al. 2017).
        dropout: probability of zeroing a feature, in training.
        init_std: standard deviation of the initial vectors; 0.02 when None.
        unit: divide each token's vector by its length.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"positions", "added"})

    def __init__(
        self,
        vocab_size: Size = INHERIT,
        dim: Size = INHERIT,
        position: Position | None = None,
        norm: Norm | None = None,
        scale: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        init_std: float | None = INHERIT,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.vocab_size = vocab_size
        self.factor = math.sqrt(dim) if scale else 1.0
        self.std = 0.02 if init_std is None else init_std
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        self.position = position
        self.norm = norm
        self.dropout = dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal vectors."""
        nn.init.normal_(self.weight, 0.0, self.std)

    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """Token 0 throughout."""
        if length is None:
            raise ConfigError("the model has no max_seq_len: give length, the number of tokens")
        return torch.zeros(batch, length, dtype=torch.long)

    def forward(self, inputs: Tensor, streams: Streams) -> Tensor:
        """Look the tokens up and add their positions."""
        if inputs.dtype not in (torch.int64, torch.int32) or inputs.dim() != 2:
            raise ShapeError(
                f"token ids are integers of shape [batch, length], not {inputs.dtype} of shape {list(inputs.shape)}"
            )
        if inputs.device != self.weight.device:
            raise ShapeError(f"token ids are on {inputs.device}, and the model on {self.weight.device}; move them")
        try:
            x = F.embedding(inputs, self.weight)
        except IndexError:
            low, high = int(inputs.min()), int(inputs.max())
            raise TokenIdError(f"token ids must lie in [0, {self.vocab_size}); these lie in [{low}, {high}]") from None
        if self.unit:
            x = F.normalize(x, dim=-1)
        if self.factor != 1.0:
            x = x * self.factor
        if self.position is not None:
            x = x + self.position(streams.get("positions"), inputs.shape[1], x)
        if streams.get("added") is not None:
            x = x + fitting(streams["added"], x)
        if self.norm is not None:
            x = self.norm(x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return x


def fitting(added: Tensor, x: Tensor) -> Tensor:
    """Features that are added to x, in its dtype.

    Raises:
        ShapeError: they have another shape.
    """
    if added.shape != x.shape:
        raise ShapeError(f"what is added has shape {list(added.shape)}, and the embedded tokens {list(x.shape)}")
    return added.to(x.dtype)
