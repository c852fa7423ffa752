"""An embedding that tells each layer more of a token."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.embedding.around import AroundEmbedding
from variform.parts.kinds import Embedding, Streams

Size = Annotated[int, Field(gt=0)]


@register("deep")
class DeepEmbedding(AroundEmbedding):
    """Gives every layer a vector of each token too: what the l-th feedforward gives is multiplied by D[token, l].

    Deep embeddings of RWKV-8 (github.com/BlinkDL/RWKV-LM). The stream `token_gains` holds them as a tuple, of which
    each residual step with a feedforward takes the first; feedforwards beyond the last have none, and so have features
    in front of the tokens.

    Shapes:
        ids: [B, L] -> [B, L, dim]; token_gains: `depth` times the same

    Args:
        embedding: of the tokens.
        depth: how many vectors a token has.
        vocab_size: number of different tokens.
        dim: features.
    """

    def __init__(self, embedding: Embedding, depth: Size = 1, vocab_size: Size = INHERIT, dim: Size = INHERIT) -> None:
        super().__init__()
        self.embedding = embedding
        self.gains = nn.Parameter(torch.empty(vocab_size, depth, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All factors are one."""
        nn.init.ones_(self.gains)

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """The vectors."""
        return ("token_gains",)

    def forward(self, inputs: Tensor, streams: Streams) -> tuple[Tensor, dict[str, Any]]:
        """Embed the tokens, and look up the vectors."""
        x = self.embedding(inputs, streams)
        published: dict[str, Any] = {}
        if isinstance(x, tuple):
            x, published = x
        if inputs.dim() != 2:
            raise ShapeError(f"deep embeddings are of ids [B, L], and the input has the shape {list(inputs.shape)}")
        gains = F.pad(F.embedding(inputs, self.gains.flatten(1)), (0, 0, x.shape[1] - inputs.shape[1], 0), value=1.0)
        return x, {**published, "token_gains": gains.view(*gains.shape[:2], *self.gains.shape[1:]).unbind(2)}
