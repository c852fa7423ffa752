"""Scaled dot-product attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.native import NativeAttention
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.parts.attention.softmax import SoftmaxAttention

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
        seq_len: the usual number of queries; any other works too, nothing is prepared for it.
        to_seq_len: the usual number of keys; likewise.
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
