"""Scaled dot-product attention."""

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
from variform.dialects.xformers.errors import CallError
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Sides

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class ScaledDotProductConfig(AttentionConfig):
    """The configuration of `ScaledDotProduct`."""

    causal: bool | None = None
    seq_len: int | None = None
    to_seq_len: int | None = None


@register_attention("scaled_dot_product", ScaledDotProductConfig)
class ScaledDotProduct(NativeAttention):
    """softmax(Q K^T / sqrt(D)) V (Vaswani et al. 2017, arXiv:1706.03762), by the library's fastest backend.

    Args:
        dropout: probability of dropping an attention weight, in training.
        causal: position i attends to positions <= i.
        seq_len: the largest number of queries; None for any.
        to_seq_len: the largest number of keys; None for any.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "softmax"

    def __init__(
        self,
        dropout: Rate = 0.0,
        causal: bool = False,
        seq_len: Size | None = None,
        to_seq_len: Size | None = None,
        **superset: Any,
    ) -> None:
        verify(ScaledDotProduct, dropout=dropout, causal=causal, seq_len=seq_len, to_seq_len=to_seq_len)
        super().__init__(SoftmaxAttention.spec(dropout=dropout, causal=causal))
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "scaled_dot_product")
        self.seq_len = seq_len
        self.longest_keys = to_seq_len

    def sides(
        self, att_mask: AttMask | None, padding: Tensor | None, sizes: Sizes, positions: Tensor | None = None
    ) -> Sides:
        """As for every attention; refuses sequences that are longer than was said."""
        for name, longest, found in (
            ("seq_len", self.seq_len, sizes.queries),
            ("to_seq_len", self.longest_keys, sizes.keys),
        ):
            if longest is not None and found > longest:
                raise CallError(f"{name} = {longest}, and the sequence has {found} tokens; leave {name} out for any")
        return super().sides(att_mask, padding, sizes, positions)
