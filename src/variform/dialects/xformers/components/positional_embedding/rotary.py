"""Rotary positions, used through `MultiHeadDispatch(use_rotary_embeddings=True)`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.parts.position.rotary import RotaryRotation


def rotate_half(x: Tensor) -> Tensor:
    """Each pair (x_i, x_{i + d/2}) turned by a quarter: (-x_{i + d/2}, x_i)."""
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def apply_rotary_pos_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate features by given angles: x cos + rotate_half(x) sin.

    Shapes:
        x: [B, heads, S, D], cos and sin: [1, 1, S' >= S, D] -> [B, heads, S, D]
    """
    length = x.shape[-2]
    return x * cos[..., :length, :] + rotate_half(x) * sin[..., :length, :]


class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by their positions (Su et al. 2021, arXiv:2104.09864); feature i pairs with i + d / 2.

    Shapes:
        q: [B, heads, Sq, dim_model], k: [B, heads, Sk, dim_model] -> the same

    Args:
        dim_model: features of one head; even.
    """

    def __init__(self, dim_model: int) -> None:
        super().__init__()
        self.rotation: RotaryRotation = build(RotaryRotation.spec(dim_head=dim_model, max_seq_len=None, layout="half"))

    @property
    def spec(self) -> Spec:
        """The native rotation."""
        return self.rotation.spec

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rotate.

        Args:
            q: queries.
            k: keys.
            positions: [S] or [B, S] integers of both sides; 0, 1, ... by default.
        """
        return self.rotation(q, k, positions, positions)
