"""An additive attention mask with its helpers, as upstream's parts exchange it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variform.dialects.xformers.errors import CallError


class AttentionMask:
    """An additive mask: 0 = attended, -inf = not, any other value is added to the scores.

    Shapes:
        additive_mask: [Sq, Sk], or 3-D with a first axis for the batch; kept as 3-D `values`

    Args:
        additive_mask: floats, without a gradient.
        is_causal: the mask is the causal one, which kernels know without reading it.

    Raises:
        CallError: not floats, or a tensor that requires a gradient.
    """

    def __init__(self, additive_mask: Tensor, is_causal: bool = False) -> None:
        if not additive_mask.is_floating_point():
            raise CallError(f"an additive mask holds floats, not {additive_mask.dtype}; from_bool takes booleans")
        if additive_mask.requires_grad:
            raise CallError("an attention mask has no gradient; pass a learned bias as a float att_mask")
        self.values = additive_mask.unsqueeze(0) if additive_mask.dim() == 2 else additive_mask
        self.is_causal = is_causal
        self.seq_len = self.values.shape[-2]
        self.to_seq_len = self.values.shape[-1]

    @classmethod
    def from_bool(cls, x: Tensor) -> AttentionMask:
        """From a pattern in which True means attended."""
        if x.dtype != torch.bool:
            raise CallError(f"from_bool takes booleans, not {x.dtype}")
        return cls(torch.zeros(x.shape, device=x.device).masked_fill_(~x, -torch.inf))

    @classmethod
    def from_multiplicative(cls, x: Tensor) -> AttentionMask:
        """From numbers in which 0 means not attended."""
        if x.dtype == torch.bool:
            raise CallError("from_multiplicative takes numbers; from_bool takes booleans")
        return cls.from_bool(x != 0)

    @classmethod
    def make_causal(
        cls,
        seq_len: int,
        to_seq_len: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> AttentionMask:
        """Each position attends to itself and those before."""
        shape = (seq_len, to_seq_len or seq_len)
        return cls(torch.full(shape, -torch.inf, device=device, dtype=dtype).triu_(1), is_causal=True)

    def make_crop(self, seq_len: int, to_seq_len: int | None = None) -> AttentionMask:
        """The mask of the first positions; a view."""
        return AttentionMask(self.values[:, :seq_len, : to_seq_len or seq_len], self.is_causal)

    def to_bool(self) -> Tensor:
        """True where attention is allowed."""
        return self.values != -torch.inf

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> AttentionMask:
        """On another device, in another dtype."""
        return AttentionMask(self.values.to(device=device, dtype=dtype), self.is_causal)

    def __add__(self, other: AttentionMask) -> AttentionMask:
        return AttentionMask(self.values + other.values, is_causal=False)

    def __repr__(self) -> str:
        return f"AttentionMask(causal={self.is_causal}, shape={list(self.shape)})"

    @property
    def shape(self) -> torch.Size:
        """[1 or B, Sq, Sk]."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """Always 3."""
        return self.values.dim()

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values."""
        return self.values.dtype

    @property
    def device(self) -> Any:
        """Where the values are."""
        return self.values.device

    @property
    def is_sparse(self) -> bool:
        """Never: backends find sparsity themselves."""
        return False
