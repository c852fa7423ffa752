"""Features of positions that a call gives: `pos` of floats, added in place of a model's absolute positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from variform.dialects.x_transformers.errors import InputError
from variform.parts.kinds import Position
from variform.stack.tapped import replaced


class GivenPosition(nn.Module):
    """Codes of positions that are there already.

    Args:
        features: [L, D] or [B, L, D].
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, positions: Tensor | None, length: int, like: Tensor) -> Tensor:
        """The features.

        Raises:
            InputError: they are of other tokens, or of another width.
        """
        rows, width = like.shape[0], like.shape[2]
        if tuple(self.features.shape) not in ((length, width), (1, length, width), (rows, length, width)):
            wanted = f"[{length}, {width}] or [{rows}, {length}, {width}]"
            raise InputError(f"pos of floats is features of positions, {wanted}, not {list(self.features.shape)}")
        return self.features.to(like.dtype)


def embedding_placed(embedding: Any, features: Tensor) -> Any:
    """A view of an embedding, of the same modules, whose absolute positions are given; None where it has none."""
    held = next((module for module in embedding.modules() if isinstance(module, Position)), None)
    return None if held is None else replaced(embedding, held, GivenPosition(features))
