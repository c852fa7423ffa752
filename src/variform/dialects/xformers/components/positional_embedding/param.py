"""Learned positions for features, with an optional class token."""

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
from variform.errors import ShapeError
from variform.parts.embedding.features import FeatureEmbedding, behind_class_tokens
from variform.parts.position.absolute import LearnedPosition

Size = Annotated[int, Field(gt=0)]


@dataclass
class LearnablePositionalEmbeddingConfig(PositionEmbeddingConfig):
    """The configuration of `LearnablePositionalEmbedding`."""

    add_class_token: bool | None = None


@register_positional_embedding("learnable", LearnablePositionalEmbeddingConfig)
class LearnablePositionalEmbedding(PlacedEmbedding):
    """Adds a learned vector to each position; a class token, zero at first, may stand in front.

    Shapes:
        x: [B, S, dim_model], S <= seq_len -> [B, S, dim_model], or [B, 1 + S, dim_model] with the class token;
            without it also [B, S] numbers, which are added to every feature

    Args:
        seq_len: number of positions, without the class token.
        dim_model: features.
        add_class_token: put a learned token in front.
        **superset: keys of other position embeddings, listed in `dropped`.
    """

    def __init__(self, seq_len: Size, dim_model: Size, add_class_token: bool = False, **superset: Any) -> None:
        super().__init__()
        given = {"seq_len": seq_len, "dim_model": dim_model, "add_class_token": add_class_token}
        verify(LearnablePositionalEmbedding, **given)
        self.dropped = superset_keys(POSITION_EMBEDDING_REGISTRY, superset, "learnable")
        self.class_tokens = int(add_class_token)
        self.pos_emb = nn.Parameter(torch.empty(1, seq_len + self.class_tokens, dim_model))
        self.class_token = nn.Parameter(torch.empty(dim_model)) if add_class_token else None
        self.init_weights()

    def init_weights(self, gain: float = 1.0) -> None:
        """Normal positions of standard deviation 0.02 `gain`, the class token at zero."""
        nn.init.normal_(self.pos_emb, std=0.02 * gain)
        if self.class_token is not None:
            nn.init.zeros_(self.class_token)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Put the class token in front and add the positions."""
        if x.dim() == 2 and self.class_token is None:
            x = x.unsqueeze(-1).expand(-1, -1, self.pos_emb.shape[-1])
        if x.dim() != 3 or x.shape[-1] != self.pos_emb.shape[-1]:
            raise ShapeError(f"features have the shape [batch, length, {self.pos_emb.shape[-1]}], not {list(x.shape)}")
        if x.shape[1] > self.longest:
            raise ShapeError(f"the sequence has {x.shape[1]} tokens, and seq_len is {self.longest}")
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(x.shape[0], 1, -1).to(x.dtype), x), 1)
            positions = behind_class_tokens({"positions": positions}, 1)["positions"]
        table = self.pos_emb[0]
        return x + (table[: x.shape[1]] if positions is None else table[positions])

    @property
    def spec(self) -> Spec:
        """The native embedding of features with learned positions."""
        places, dim = self.pos_emb.shape[1:]
        position = LearnedPosition.spec(max_seq_len=places)
        return FeatureEmbedding.spec(dim=dim, position=position, class_tokens=self.class_tokens)

    @property
    def longest(self) -> int:
        """The number of positions without the class token."""
        return self.pos_emb.shape[1] - self.class_tokens
