"""Token vectors and learned positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.positional_embedding.base import PlacedEmbedding, PositionEmbeddingConfig
from variform.dialects.xformers.components.positional_embedding.registry import (
    POSITION_EMBEDDING_REGISTRY,
    register_positional_embedding,
)
from variform.errors import ShapeError, TokenIdError
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.position.absolute import LearnedPosition

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class VocabEmbeddingConfig(PositionEmbeddingConfig):
    """The configuration of `VocabEmbedding`."""

    vocab_size: int
    dropout: float | None = None


@register_positional_embedding("vocab", VocabEmbeddingConfig)
class VocabEmbedding(PlacedEmbedding):
    """A learned vector for each token and one for each position, added.

    Shapes:
        x: [B, S] integers in [0, vocab_size), S <= seq_len -> [B, S, dim_model]

    Args:
        dim_model: features.
        seq_len: number of positions.
        vocab_size: number of different tokens.
        dropout: probability of zeroing a feature, in training.
        **superset: keys of other position embeddings, listed in `dropped`.
    """

    def __init__(self, dim_model: Size, seq_len: Size, vocab_size: Size, dropout: Rate = 0.0, **superset: Any) -> None:
        super().__init__()
        verify(VocabEmbedding, dim_model=dim_model, seq_len=seq_len, vocab_size=vocab_size, dropout=dropout)
        self.dropped = superset_keys(POSITION_EMBEDDING_REGISTRY, superset, "vocab")
        self.dim_model = dim_model
        self.vocab_size = vocab_size
        self.dropout = nn.Dropout(dropout)
        self.position_embeddings = nn.Embedding(seq_len, dim_model)
        self.word_embeddings = nn.Embedding(vocab_size, dim_model)
        self.init_weights()

    def init_weights(self, gain: float = 1.0) -> None:
        """Normal vectors of standard deviation 0.02 `gain`."""
        nn.init.normal_(self.position_embeddings.weight, std=0.02 * gain)
        nn.init.normal_(self.word_embeddings.weight, std=0.02 * gain)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Look tokens and positions up."""
        if x.dim() != 2 or x.dtype not in (torch.int64, torch.int32):
            raise ShapeError(f"token ids are integers of shape [batch, length], not {x.dtype} {list(x.shape)}")
        if x.shape[1] > self.longest:
            raise ShapeError(f"the sequence has {x.shape[1]} tokens, and seq_len is {self.longest}")
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        try:
            tokens = self.word_embeddings(x)
        except IndexError:
            low, high = int(x.min()), int(x.max())
            raise TokenIdError(f"token ids must lie in [0, {self.vocab_size}); these lie in [{low}, {high}]") from None
        return self.dropout(tokens + self.position_embeddings(positions))  # type: ignore[no-any-return]

    @property
    def spec(self) -> Spec:
        """The native token embedding with learned positions."""
        return TokenEmbedding.spec(
            vocab_size=self.vocab_size,
            dim=self.dim_model,
            position=LearnedPosition.spec(max_seq_len=self.longest),
            dropout=self.dropout.p,
        )

    @property
    def longest(self) -> int:
        """The number of positions."""
        return self.position_embeddings.num_embeddings
