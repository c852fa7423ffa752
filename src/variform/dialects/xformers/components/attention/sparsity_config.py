"""Block layouts by rule, one for each head: the configurations that upstream took over from DeepSpeed.

`make_layout(seq_len)` gives a long tensor [num_heads, S / b, S / b] of zeros and ones, as a block-sparse attention
takes it. Random blocks come from torch's generator, or from `seed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from variform.dialects.xformers.components.attention.layout_rules import (
    as_list,
    check_direction,
    check_enough,
    clipped_ranges,
    count_problems,
    draw_blocks,
    raise_all,
    range_problems,
    sliding_window,
)
from variform.dialects.xformers.errors import Wrong, config_error

__all__ = [
    "BSLongformerSparsityConfig",
    "BigBirdSparsityConfig",
    "DenseSparsityConfig",
    "FixedSparsityConfig",
    "SparsityConfig",
    "VariableSparsityConfig",
]


class SparsityConfig:
    """What every layout has: a number of heads and a block size.

    Args:
        num_heads: heads.
        block_size: positions of a block along each side.
        different_layout_per_head: make each head's layout by itself; otherwise all have the first one's.
    """

    def __init__(self, num_heads: int, block_size: int = 16, different_layout_per_head: bool = False) -> None:
        sizes = (("num_heads", num_heads), ("block_size", block_size))
        raise_all(Wrong(name, "must be >= 1", size) for name, size in sizes if size < 1)
        self.num_heads = num_heads
        self.block_size = block_size
        self.different_layout_per_head = different_layout_per_head
        self.num_layout_heads = num_heads if different_layout_per_head else 1

    def setup_layout(self, seq_len: int) -> Tensor:
        """An empty layout, long [num_heads, S / b, S / b].

        Raises:
            ConfigError: a length that the blocks do not divide.
        """
        if seq_len % self.block_size:
            near = seq_len // self.block_size * self.block_size
            hint = f"nearest: {near or self.block_size} or {near + self.block_size}"
            raise config_error(
                [Wrong("seq_len", f"must be a multiple of block_size = {self.block_size}", seq_len, hint)]
            )
        blocks = seq_len // self.block_size
        return torch.zeros(self.num_heads, blocks, blocks, dtype=torch.int64)

    def make_layout(self, seq_len: int) -> Tensor:
        """The layout for a length, long [num_heads, S / b, S / b]."""
        layout = self.setup_layout(seq_len)
        blocks = layout.shape[-1]
        self._fits(blocks)
        for head in range(self.num_layout_heads):
            made = torch.zeros(blocks, blocks, dtype=torch.bool)
            self._fill(made, head)
            layout[head] = made.tril() if getattr(self, "attention", None) == "unidirectional" else made
        return self.check_and_propagate_first_head_layout(layout)

    def check_and_propagate_first_head_layout(self, layout: Tensor) -> Tensor:
        """The first head's layout for all, unless each has its own."""
        return layout if self.different_layout_per_head else layout[:1].expand_as(layout).clone()

    def _fits(self, blocks: int) -> None:
        """Refuse lengths that are too short."""

    def _fill(self, layout: Tensor, head: int) -> None:
        """Mark the blocks of one head; what lies above the diagonal is taken out afterwards where it has to be."""
        raise NotImplementedError(f"{type(self).__name__} describes no layout: take one of its subclasses")


class DenseSparsityConfig(SparsityConfig):
    """Every block.

    Args:
        num_heads: heads.
        block_size: positions of a block along each side.
        different_layout_per_head: changes nothing: all heads see every block.
    """

    def _fill(self, layout: Tensor, head: int) -> None:
        layout.fill_(True)


class FixedSparsityConfig(SparsityConfig):
    """Windows side by side, and summaries of each (Sparse Transformer, Child et al. 2019, arXiv:1904.10509).

    Args:
        num_heads: heads.
        block_size: positions of a block along each side.
        different_layout_per_head: let the heads take different summary blocks.
        num_local_blocks: blocks of a window.
        num_global_blocks: how many of a window's last blocks are seen from outside; divides `num_local_blocks`.
        attention: "bidirectional", or "unidirectional": no block above the diagonal.
        horizontal_global_attention: summary blocks see all as well; bidirectional alone.
        num_different_global_patterns: how many sets of summary blocks there are for the heads to take in turn.
    """

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_local_blocks: int = 4,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
        num_different_global_patterns: int = 1,
    ) -> None:
        super().__init__(num_heads, block_size, different_layout_per_head)
        check_direction(attention, horizontal_global_attention)
        raise_all(count_problems(num_local_blocks=num_local_blocks, num_global_blocks=num_global_blocks))
        found = []
        if num_local_blocks % num_global_blocks:
            message = f"must divide num_local_blocks = {num_local_blocks}"
            found.append(Wrong("num_global_blocks", message, num_global_blocks))
        if num_different_global_patterns > 1 and not different_layout_per_head:
            message = "several global patterns need different_layout_per_head=True"
            found.append(Wrong("num_different_global_patterns", message, num_different_global_patterns))
        most = num_local_blocks // num_global_blocks
        if not 1 <= num_different_global_patterns <= most:
            message = f"a window of {num_local_blocks} blocks has 1 to {most} sets of {num_global_blocks} global ones"
            found.append(Wrong("num_different_global_patterns", message, num_different_global_patterns))
        raise_all(found)
        self.num_local_blocks = num_local_blocks
        self.num_global_blocks = num_global_blocks
        self.attention = attention
        self.horizontal_global_attention = horizontal_global_attention
        self.num_different_global_patterns = num_different_global_patterns

    def _fill(self, layout: Tensor, head: int) -> None:
        window, count, blocks = self.num_local_blocks, self.num_global_blocks, layout.shape[-1]
        for start in range(0, blocks, window):
            layout[start : start + window, start : start + window] = True
        offset = window - (1 + head % self.num_different_global_patterns) * count
        starts = list(range(offset, blocks - blocks % window, window))
        if blocks % window:  # the last window is shorter: its summary stands as far in as it can
            starts.append(max(0, min(blocks - blocks % window + offset, blocks - count)))
        for start in starts:
            first = 0 if self.attention == "bidirectional" else start
            layout[first:, start : start + count] = True
            if self.horizontal_global_attention:
                layout[start : start + count] = True


class VariableSparsityConfig(SparsityConfig):
    """Windows of chosen sizes, chosen global blocks, random blocks.

    Args:
        num_heads: heads.
        block_size: positions of a block along each side.
        different_layout_per_head: draw random blocks for each head.
        num_random_blocks: blocks that each row of blocks draws.
        local_window_blocks: blocks of the first, second, ... window; the last size is repeated. [4] by default.
        global_block_indices: blocks that all see, or where ranges of them begin. [0] by default.
        global_block_end_indices: where the ranges end (excluded); each is one block by default.
        attention: "bidirectional", or "unidirectional": no block above the diagonal.
        horizontal_global_attention: global blocks see all as well; bidirectional alone.
        seed: equal seeds draw equal blocks; torch's generator by default.
    """

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 0,
        local_window_blocks: Sequence[int] = (4,),
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(num_heads, block_size, different_layout_per_head)
        check_direction(attention, horizontal_global_attention)
        found = count_problems(num_random_blocks=num_random_blocks, least=0)
        if not local_window_blocks or min(local_window_blocks) < 1:
            found.append(Wrong("local_window_blocks", "one window or more, each of >= 1 blocks", local_window_blocks))
        raise_all([*found, *range_problems(global_block_indices, global_block_end_indices)])
        self.num_random_blocks = num_random_blocks
        self.local_window_blocks = list(local_window_blocks)
        self.global_block_indices = list(global_block_indices)
        self.global_block_end_indices = as_list(global_block_end_indices)
        self.attention = attention
        self.horizontal_global_attention = horizontal_global_attention
        self.seed = seed

    def _fits(self, blocks: int) -> None:
        check_enough(blocks, num_random_blocks=self.num_random_blocks)

    def _fill(self, layout: Tensor, head: int) -> None:
        draw_blocks(layout, self.num_random_blocks, self.attention, self.seed, head)
        start, blocks = 0, layout.shape[-1]
        sizes = iter(self.local_window_blocks)
        size = self.local_window_blocks[0]
        while start < blocks:
            size = next(sizes, size)
            layout[start : start + size, start : start + size] = True
            start += size
        for first, end in clipped_ranges(self.global_block_indices, self.global_block_end_indices, blocks):
            layout[0 if self.attention == "bidirectional" else first :, first:end] = True
            if self.horizontal_global_attention:
                layout[first:end] = True


class BigBirdSparsityConfig(SparsityConfig):
    """A sliding window, global and random blocks (BigBird, Zaheer et al. 2020, arXiv:2007.14062).

    Args:
        num_heads: heads.
        block_size: positions of a block along each side.
        different_layout_per_head: draw random blocks for each head.
        num_random_blocks: blocks that each row of blocks draws.
        num_sliding_window_blocks: blocks of the window, the row's own in their middle.
        num_global_blocks: how many of the first blocks see all and are seen by all.
        attention: "bidirectional", or "unidirectional": no block above the diagonal, random ones drawn below it.
        seed: equal seeds draw equal blocks; torch's generator by default.
    """

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 1,
        num_sliding_window_blocks: int = 3,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
        seed: int | None = None,
    ) -> None:
        super().__init__(num_heads, block_size, different_layout_per_head)
        check_direction(attention)
        counts = {"num_random_blocks": num_random_blocks, "num_global_blocks": num_global_blocks}
        raise_all(
            [*count_problems(num_sliding_window_blocks=num_sliding_window_blocks), *count_problems(least=0, **counts)]
        )
        self.num_random_blocks = num_random_blocks
        self.num_sliding_window_blocks = num_sliding_window_blocks
        self.num_global_blocks = num_global_blocks
        self.attention = attention
        self.seed = seed

    def _fits(self, blocks: int) -> None:
        check_enough(
            blocks,
            num_random_blocks=self.num_random_blocks,
            num_sliding_window_blocks=self.num_sliding_window_blocks,
            num_global_blocks=self.num_global_blocks,
        )

    def _fill(self, layout: Tensor, head: int) -> None:
        draw_blocks(layout, self.num_random_blocks, self.attention, self.seed, head)
        layout |= sliding_window(layout.shape[-1], self.num_sliding_window_blocks)
        layout[: self.num_global_blocks] = True
        layout[:, : self.num_global_blocks] = True


class BSLongformerSparsityConfig(SparsityConfig):
    """A sliding window and chosen global blocks (Longformer, Beltagy et al. 2020, arXiv:2004.05150, by blocks).

    Args:
        num_heads: heads.
        block_size: positions of a block along each side.
        different_layout_per_head: changes nothing: the heads have one rule.
        num_sliding_window_blocks: blocks of the window, the row's own in their middle.
        global_block_indices: blocks that see all and are seen by all, or where ranges of them begin. [0] by default.
        global_block_end_indices: where the ranges end (excluded); each is one block by default.
        attention: "bidirectional", or "unidirectional": no block above the diagonal.
    """

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_sliding_window_blocks: int = 3,
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
    ) -> None:
        super().__init__(num_heads, block_size, different_layout_per_head)
        check_direction(attention)
        found = count_problems(num_sliding_window_blocks=num_sliding_window_blocks)
        raise_all([*found, *range_problems(global_block_indices, global_block_end_indices)])
        self.num_sliding_window_blocks = num_sliding_window_blocks
        self.global_block_indices = list(global_block_indices)
        self.global_block_end_indices = as_list(global_block_end_indices)
        self.attention = attention

    def _fits(self, blocks: int) -> None:
        check_enough(blocks, num_sliding_window_blocks=self.num_sliding_window_blocks)

    def _fill(self, layout: Tensor, head: int) -> None:
        layout |= sliding_window(layout.shape[-1], self.num_sliding_window_blocks)
        for first, end in clipped_ranges(self.global_block_indices, self.global_block_end_indices, layout.shape[-1]):
            layout[first:end] = True
            layout[:, first:end] = True
