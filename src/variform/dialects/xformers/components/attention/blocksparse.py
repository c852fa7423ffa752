"""Attention between given blocks of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes
from variform.dialects.xformers.components.attention.native import NativeAttention
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.dialects.xformers.errors import CallError, Wrong, config_error
from variform.parts.attention.block_sparse import BlockSparseAttention as NativeBlockSparse
from variform.parts.attention.block_sparse import layout_rows
from variform.parts.kinds import Sides

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]
BlockSize = Annotated[int, Field(ge=16)]


@dataclass
class BlockSparseAttentionConfig(AttentionConfig):
    """The configuration of `BlockSparseAttention`."""

    layout: Tensor | None = None
    block_size: int | None = None
    num_heads: int | None = None
    causal: bool | None = None


@register_attention("blocksparse", BlockSparseAttentionConfig)
class BlockSparseAttention(NativeAttention):
    """Attention between blocks of positions, by a layout (Child et al. 2019, arXiv:1904.10509).

    Position i attends to j where `layout[i // block_size, j // block_size]` is not 0. A sequence may have any length
    up to layout rows x block_size; a shorter one takes the layout's leading part. Masks on top may be finer, and with a
    third axis of `num_heads` sizes differ by head.

    Args:
        layout: [n, n], or [num_heads, n, n] for one a head; numbers or bool.
        block_size: positions of a block, any number from 16.
        dropout: probability of dropping an attention weight, in training.
        num_heads: how many heads there are; only a layout by head depends on it, and then has as many.
        causal: only the past, within the blocks on the diagonal as well.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "blocksparse"

    native: NativeBlockSparse

    def __init__(
        self,
        layout: Tensor,
        block_size: BlockSize = 16,
        dropout: Rate = 0.0,
        num_heads: Size = 1,
        causal: bool = False,
        **superset: Any,
    ) -> None:
        verify(BlockSparseAttention, block_size=block_size, dropout=dropout, num_heads=num_heads, causal=causal)
        if wrong := _layout_problems(layout, num_heads):
            raise config_error(wrong)
        rows = layout_rows(layout[0] if layout.dim() == 3 and layout.shape[0] == 1 else layout)
        super().__init__(NativeBlockSparse.spec(layout=rows, block=block_size, dropout=dropout, causal=causal))
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "blocksparse")
        self.requires_head_dimension = True
        self.block_size = block_size
        self.num_heads = num_heads

    @property
    def own_heads(self) -> int | None:
        """The number of heads, unless it is the default, which a layout for all heads has too."""
        return None if self.num_heads == 1 else self.num_heads

    def sides(
        self, att_mask: AttMask | None, padding: Tensor | None, sizes: Sizes, positions: Tensor | None = None
    ) -> Sides:
        """As for every attention; refuses heads and lengths that the layout does not have."""
        layout = self.native
        if layout.heads not in (1, sizes.heads):
            raise CallError(f"the layout has {layout.heads} heads, q has {sizes.heads}: it is [B, heads, S, D]")
        if sizes.keys > layout.longest:
            raise CallError(f"the layout covers {layout.longest} positions, the sequence has {sizes.keys}")
        return super().sides(att_mask, padding, sizes, positions)


def _layout_problems(layout: Any, heads: int) -> list[Wrong]:
    if not isinstance(layout, Tensor) or layout.dim() not in (2, 3) or layout.shape[-1] != layout.shape[-2]:
        found = list(getattr(layout, "shape", ())) or type(layout).__name__
        return [Wrong("layout", f"a tensor [n, n] or [heads, n, n] is needed, not {found}", like=AssertionError)]
    if layout.numel() == 0:
        return [Wrong("layout", "a layout has at least one block", like=AssertionError)]
    if layout.dim() == 3 and layout.shape[0] != 1 and heads not in (1, layout.shape[0]):
        message = f"the layout has {layout.shape[0]} heads"
        return [Wrong("num_heads", message, heads, f"give {layout.shape[0]}, or one layout for all", AssertionError)]
    return []
