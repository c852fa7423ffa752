"""Attention over fixed patterns as a standalone file has it: the pattern as a bool mask over positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from variform.export.standins.attention import Sides, attend, attention_mask, positions_of


class GlobalAttention(nn.Module):
    """Attention through global tokens (Longformer, Beltagy et al. 2020, arXiv:2004.05150, without its window)."""

    def __init__(
        self, tokens: tuple[int, ...] = (0,), causal: bool = False, dropout: float = 0.0, scale: float | None = None
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.causal = causal
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        q_at, k_at = places(q, sides.q_positions, 3), places(k, sides.k_positions, 2)
        seen = listed(q_at, self.tokens) | listed(k_at, self.tokens)
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, seen_mask(q, k, sides, self.causal, seen), dropout=dropout, scale=self.scale)


class LongformerAttention(nn.Module):
    """A sliding window and global tokens (Longformer, Beltagy et al. 2020, arXiv:2004.05150)."""

    def __init__(
        self,
        window: int,
        tokens: tuple[int, ...] = (0,),
        causal: bool = False,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.window = window
        self.tokens = tokens
        self.causal = causal
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        q_at, k_at = places(q, sides.q_positions, 3), places(k, sides.k_positions, 2)
        reach = self.window - 1 if self.causal else self.window // 2
        seen = ((q_at - k_at).abs() <= reach) | listed(q_at, self.tokens) | listed(k_at, self.tokens)
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, seen_mask(q, k, sides, self.causal, seen), dropout=dropout, scale=self.scale)


class BigBirdAttention(nn.Module):
    """Window, global and random blocks (BigBird, Zaheer et al. 2020, arXiv:2007.14062)."""

    def __init__(
        self,
        block: int = 64,
        window_blocks: int = 3,
        global_blocks: int = 2,
        random_blocks: int = 3,
        seed: int = 0,
        causal: bool = False,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.block = block
        self.window_blocks = window_blocks
        self.global_blocks = global_blocks
        self.random_blocks = random_blocks
        self.seed = seed
        self.causal = causal
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        q_at, k_at = places(q, sides.q_positions, 3) // self.block, places(k, sides.k_positions, 2) // self.block
        seen = (q_at - k_at).abs() <= self.window_blocks // 2
        seen = seen | (q_at < self.global_blocks) | (k_at < self.global_blocks)
        for draw in range(self.random_blocks):
            seen = seen | (k_at == self.drawn(q_at, draw)) | (q_at == self.drawn(k_at, draw))
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, seen_mask(q, k, sides, self.causal, seen), dropout=dropout, scale=self.scale)

    def drawn(self, at: Tensor, draw: int) -> Tensor:
        """The earlier block, or its own, that each block is linked with."""
        past = at + 1
        first, end = past * draw // self.random_blocks, past * (draw + 1) // self.random_blocks
        word: Tensor = mixed((at ^ mixed((self.seed ^ 0x2545F491 * (draw + 1)) & 0xFFFFFFFF)) & 0xFFFFFFFF)
        return first + ((word >> 1) * (end - first) >> 31)


class RandomAttention(nn.Module):
    """Attention to random positions (BigBird, Zaheer et al. 2020, arXiv:2007.14062, the random part alone)."""

    seed: Tensor

    def __init__(
        self,
        r: float = 0.01,
        constant_masking: bool = True,
        seed: int = 0,
        causal: bool = False,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.r = r
        self.constant_masking = constant_masking
        self.register_buffer("seed", torch.tensor(seed))
        self.causal = causal
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        q_at, k_at = places(q, sides.q_positions, 3), places(k, sides.k_positions, 2)
        seed = self.seed
        if self.training and not self.constant_masking:
            seed = torch.randint(0, 1 << 31, (), device=seed.device)
        rows = mixed((q_at ^ mixed((seed ^ 0x9E3779B9) & 0xFFFFFFFF)) & 0xFFFFFFFF) >> 1
        columns = mixed((k_at ^ mixed((seed ^ 0x7F4A7C15) & 0xFFFFFFFF)) & 0xFFFFFFFF) >> 1
        product = rows * columns
        seen = (q_at == k_at) | (((product ^ (product >> 31)) & 0x7FFFFFFF) < round(self.r * 2147483648))
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, seen_mask(q, k, sides, self.causal, seen), dropout=dropout, scale=self.scale)


class BlockSparseAttention(nn.Module):
    """Attention between blocks of positions, by a layout (Sparse Transformers, Child et al. 2019, arXiv:1904.10509)."""

    layout: Tensor

    def __init__(
        self,
        layout: tuple[Any, ...],
        block: int = 16,
        causal: bool = False,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        heads = (layout,) if isinstance(layout[0], str) else layout
        ones = [[[digit == "1" for digit in row] for row in rows] for rows in heads]
        self.register_buffer("layout", torch.tensor(ones), persistent=False)  # (1 or heads, blocks, blocks)
        self.block = block
        self.causal = causal
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        q_at, k_at = places(q, sides.q_positions, 3) // self.block, places(k, sides.k_positions, 2) // self.block
        heads = torch.arange(self.layout.shape[0], device=q.device)[:, None, None]
        seen = self.layout[heads, q_at, k_at]
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, seen_mask(q, k, sides, self.causal, seen), dropout=dropout, scale=self.scale)


def places(x: Tensor, positions: Tensor | None, axis: int) -> Tensor:
    """Positions along the queries' axis of a mask (3 from its end: 2), or along the keys'."""
    at = positions_of(positions, x)
    at = at[:, None] if at.dim() == 2 else at
    return at.unsqueeze(-1) if axis == 3 else at.unsqueeze(-2)


def listed(at: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Which positions are among the listed ones."""
    return torch.isin(at, torch.tensor(tokens, dtype=torch.long, device=at.device))


def mixed(word: Any) -> Any:
    """A 32-bit word with every bit depending on every bit."""
    word = (word ^ (word >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    word = (word ^ (word >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    return word ^ (word >> 16)


def seen_mask(q: Tensor, k: Tensor, sides: Sides, causal: bool, seen: Tensor) -> Tensor:
    """A pattern, and what else forbids: a bool mask, or biases with -inf where not."""
    mask = attention_mask(q, k, sides, causal)
    seen = seen[None] if seen.dim() == 3 else seen
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
