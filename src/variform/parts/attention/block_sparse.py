"""Softmax attention between given blocks of positions."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import inherit
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.ops.masks import Blocks, Causal, Mask
from variform.ops.masks.counts import real_tensors
from variform.parts.attention.kv_cache import buffer_state
from variform.parts.attention.patterned import Positive, Rate, Size, attend_along
from variform.parts.attention.softmax import backend_problems
from variform.parts.kinds import Attention, Sides, State

Row = Annotated[str, Field(pattern="^[01]+$")]
Rows = tuple[Row, ...]


@register("blocksparse")
class BlockSparseAttention(Attention):
    """Attention between blocks of positions, by a layout (Sparse Transformers, Child et al. 2019, arXiv:1904.10509).

    Position i attends to j where the layout has a 1 in row i // block, column j // block. Causal: and j <= i, within
    the blocks on the diagonal as well. Shorter sequences take the layout's leading part; a position whose row has no 1
    gets zeros. Finer masks, padding and documents come on top.

    Shapes:
        q, k, v: as for softmax attention, with Lq == Lk <= n * block for a layout of n rows

    Args:
        layout: n rows of n digits 0 and 1, or such a layout for each head; `layout_rows` makes it from a tensor.
        block: positions of a block.
        causal: only the past.
        dropout: probability of dropping an attention weight, in training.
        scale: factor on Q K^T; D^-0.5 by default.
        backend: as for softmax attention.

    Errors: `ShapeError` for a sequence that is longer than the layout, or other heads than it has.
    """

    can: ClassVar[Can] = Can(cross=False)
    takes_scores: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    where: Tensor

    def __init__(
        self,
        layout: Rows | tuple[Rows, ...],
        block: Size = 16,
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        scale: Positive | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.causal = causal
        self.dropout = dropout
        self.scale = scale
        self.backend = backend
        with real_tensors():
            self.fixed = Blocks(_read(layout), block)
        self._moved: dict[torch.device, Blocks] = {}
        # The layout is no state: only where the module is has to be known, for masks of its device.
        self.register_buffer("where", torch.empty(0), persistent=False)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """A layout is square."""
        layout, found = facts["layout"], backend_problems(facts)
        each = layout if layout and not isinstance(layout[0], str) else (layout,)
        if any(not rows or any(len(row) != len(rows) for row in rows) for rows in each):
            found.append(Problem("layout", "a layout has as many rows as each row has digits, and at least one"))
        elif len({len(rows) for rows in each}) > 1:
            found.append(Problem("layout", "the heads' layouts are of one size"))
        return found

    @property
    def longest(self) -> int:
        """The longest sequence that the layout covers."""
        return self.fixed.tensor.shape[-1] * self.fixed.block

    @property
    def heads(self) -> int:
        """How many layouts there are: 1 serves any number of heads."""
        return self.fixed.tensor.shape[0] if self.fixed.tensor.dim() == 3 else 1

    def pattern(self) -> Mask:
        """The blocks of the layout."""
        device = self.where.device
        if device.type in ("cpu", "meta"):
            return self.fixed
        if device not in self._moved:
            self._moved[device] = Blocks(self.fixed.tensor.to(device), self.fixed.block)
        return self._moved[device]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend between the blocks; with a state, to everything that was cached before as well."""
        if q.shape[2] > self.longest:
            raise ShapeError(f"the layout covers {self.longest} positions, the sequence has {q.shape[2]}")
        structure = Causal() & self.pattern() if self.causal else self.pattern()
        dropout = self.dropout if self.training else 0.0
        return attend_along(q, k, v, sides, structure, self.scale, dropout, self.backend)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Buffers for keys and values; refuses more positions than the layout covers."""
        if max_len > self.longest:
            raise ShapeError(f"the layout covers {self.longest} positions, decoding asks for {max_len}")
        return buffer_state(batch, max_len, like, heads, dim_key, dim_value)


def layout_rows(layout: Tensor) -> Rows | tuple[Rows, ...]:
    """A layout as rows of digits, 1 where it is not zero: [n, n], or [H, n, n] for one a head."""
    if layout.dim() not in (2, 3):
        raise ShapeError(f"a layout is [n, n] or [H, n, n], not {list(layout.shape)}")
    if layout.dim() == 3:
        return tuple(_digits(head) for head in layout)
    return _digits(layout)


def _digits(layout: Tensor) -> Rows:
    return tuple("".join("01"[int(value)] for value in row) for row in (layout != 0).tolist())


def _read(layout: Rows | tuple[Rows, ...]) -> Tensor:
    """Bool [n, n] or [H, n, n]."""
    heads = [
        [[digit == "1" for digit in row] for row in ([rows] if isinstance(rows, str) else rows)] for rows in layout
    ]
    found = torch.tensor(heads, dtype=torch.bool, device="cpu")
    return found[:, 0] if isinstance(layout[0], str) else found


__all__ = ["BlockSparseAttention", "layout_rows"]
