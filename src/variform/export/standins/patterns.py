"""Attention over fixed patterns as a standalone file has it: the pattern as a bool mask over positions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from variform.export.standins.attention import Reach, Sides, attend, attention_mask, positions_of


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
        mask = seen_mask(q, k, sides, self.causal, seen)
        unknown = Reach(None, None) if sides.scores else None
        return attend(q, k, v, mask, dropout=dropout, scale=self.scale, reach=unknown)


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
        mask = seen_mask(q, k, sides, self.causal, seen)
        unknown = Reach(None, None) if sides.scores else None
        return attend(q, k, v, mask, dropout=dropout, scale=self.scale, reach=unknown)


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
        mask = seen_mask(q, k, sides, self.causal, seen)
        unknown = Reach(None, None) if sides.scores else None
        return attend(q, k, v, mask, dropout=dropout, scale=self.scale, reach=unknown)

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
        mask = seen_mask(q, k, sides, self.causal, seen)
        unknown = Reach(None, None) if sides.scores else None
        return attend(q, k, v, mask, dropout=dropout, scale=self.scale, reach=unknown)


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
        mask = seen_mask(q, k, sides, self.causal, seen)
        unknown = Reach(None, None) if sides.scores else None
        return attend(q, k, v, mask, dropout=dropout, scale=self.scale, reach=unknown)


class ShiftedWindowAttention(nn.Module):
    """Softmax attention within windows of a grid of tokens (Swin, Liu et al. 2021, arXiv:2103.14030)."""

    def __init__(
        self,
        grid: tuple[int, int] | None = None,
        window: int = 7,
        shift: int = 0,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.window = window
        self.shift = shift
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        side = math.isqrt(q.shape[2])
        rows, columns = (side, side) if self.grid is None else self.grid
        dropout = self.dropout if self.training else 0.0
        if sides.q_positions is None and sides.k_positions is None and rows * columns > self.window**2:
            order = window_order(rows, columns, self.window, self.shift, q.device)
            mask = self.window_mask(q, sides, order, columns)
            return attend_windows(q, k, v, mask, order, dropout=dropout, scale=self.scale)
        q_at, k_at = places(q, sides.q_positions, 3), places(k, sides.k_positions, 2)
        seen = self.together(q_at, k_at, columns) & (q_at < rows * columns) & (k_at < rows * columns)
        mask = seen_mask(q, k, sides, False, seen)
        unknown = Reach(None, None) if sides.scores else None
        return attend(q, k, v, mask, dropout=dropout, scale=self.scale, reach=unknown)

    def together(self, q_at: Tensor, k_at: Tensor, columns: int) -> Tensor:
        """Whether two places lie in one window."""
        lead = -self.shift % self.window
        down = (q_at // columns + lead) // self.window == (k_at // columns + lead) // self.window
        right = (q_at % columns + lead) // self.window == (k_at % columns + lead) // self.window
        return down & right

    def window_mask(self, q: Tensor, sides: Sides, order: Tensor, columns: int) -> Tensor | None:
        """What may attend within each window: (batch or 1, heads * windows, size, size). None where all may."""
        mask: Tensor | None = None
        if self.shift:
            mask = self.together(order[:, :, None], order[:, None, :], columns)[None, None]
        if sides.k_valid is not None:
            valid = sides.k_valid[:, None, order][..., None, :]
            mask = valid if mask is None else mask & valid
        if sides.scores:
            bias = sum(change.bias(order, order).to(q.dtype) for change in sides.scores).transpose(0, 1)[None]
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        if mask is None:
            return None
        size = order.shape[1]
        return mask.expand(mask.shape[0], q.shape[1], order.shape[0], size, size).flatten(1, 2)


def window_order(rows: int, columns: int, window: int, shift: int, device: torch.device) -> Tensor:
    """The places of each window's tokens, on a grid that is rolled by the shift: (windows, size)."""
    places = torch.arange(rows * columns, device=device).view(rows, columns).roll([-shift, -shift], [0, 1])
    tiles = places.view(rows // window, window, columns // window, window).transpose(1, 2)
    return tiles.reshape(-1, window * window)


def attend_windows(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, order: Tensor, dropout: float, scale: float | None
) -> Tensor:
    """Attention window by window, each with its tokens side by side."""
    batch, heads, length, _ = q.shape
    if k.shape[1] != heads:
        k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    q, k, v = (t[:, :, order].flatten(1, 2) for t in (q, k, v))
    y = attend(q, k, v, mask, dropout=dropout, scale=scale)
    return y.reshape(batch, heads, length, -1)[:, :, order.flatten().argsort()]


class GridBias(NamedTuple):
    """Learned bias per offset of two points of a grid, within a window (Swin, arXiv:2103.14030)."""

    table: Tensor
    columns: int
    window: tuple[int, int]

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        q_at = (q_pos[None] if q_pos.dim() == 1 else q_pos)[:, :, None]
        k_at = (k_pos[None] if k_pos.dim() == 1 else k_pos)[:, None, :]
        rows, width = self.window
        down = (q_at // self.columns - k_at // self.columns).clamp(1 - rows, rows - 1)
        right = (q_at % self.columns - k_at % self.columns).clamp(1 - width, width - 1)
        biases: Tensor = self.table[(down + rows - 1) * (2 * width - 1) + right + width - 1].permute(0, 3, 1, 2)
        return biases


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
