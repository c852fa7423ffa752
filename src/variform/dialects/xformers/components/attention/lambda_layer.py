"""Lambda layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.native import NativeAttention
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.parts.attention.lambda_layer import LambdaAttention

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class LambdaLayerConfig(AttentionConfig):
    """The configuration of `LambdaLayer`."""

    seq_len: int | None = None
    dim_head: int | None = None
    causal: bool | None = None


@register_attention("lambda", LambdaLayerConfig)
class LambdaLayer(NativeAttention):
    """Content and position lambdas (LambdaNetworks, Bello 2021, arXiv:2102.08602).

    Args:
        dropout: probability of zeroing a number of the result, in training.
        seq_len: the longest sequence; a longer one is refused.
        dim_head: features of a query.
        causal: only the past.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "lambda"

    def __init__(self, dropout: Rate, seq_len: Size, dim_head: Size, causal: bool = False, **superset: Any) -> None:
        verify(LambdaLayer, dropout=dropout, seq_len=seq_len, dim_head=dim_head, causal=causal)
        spec = LambdaAttention.spec(dropout=dropout, max_seq_len=seq_len, dim_head=dim_head, causal=causal)
        super().__init__(spec)
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "lambda")
        self.seq_len = seq_len
