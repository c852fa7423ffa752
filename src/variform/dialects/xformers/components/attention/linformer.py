"""Linformer attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.native import NativeAttention
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.parts.attention.linformer import LinformerAttention as NativeLinformer

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class LinformerSelfAttentionConfig(AttentionConfig):
    """The configuration of `LinformerAttention`."""

    seq_len: int | None = None
    k: int | None = None


@register_attention("linformer", LinformerSelfAttentionConfig)
class LinformerAttention(NativeAttention):
    """softmax(Q (E K)^T / sqrt(D)) (F V) with maps E, F along the sequence (Wang et al. 2020, arXiv:2006.04768).

    Args:
        dropout: probability of dropping an attention weight, in training.
        seq_len: positions that the maps know; a longer sequence is refused.
        k: keys and values that are left of them; a quarter by default.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "linformer"

    def __init__(self, dropout: Rate, seq_len: Size, k: Size | None = None, **superset: Any) -> None:
        verify(LinformerAttention, dropout=dropout, seq_len=seq_len, k=k)
        super().__init__(NativeLinformer.spec(dropout=dropout, max_seq_len=seq_len, projected=k))
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "linformer")
        self.seq_len = seq_len
        self.k = self.native.spec["projected"] or max(1, seq_len // 4)
