"""Averages over a neighbourhood in place of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from variform.core.spec import Spec
from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.mixing import NativeMixer
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.parts.mixer.pooling import Pooling as NativePooling

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclass
class PoolingAttentionConfig(AttentionConfig):
    """The configuration of `Pooling`."""

    pool_size: int | None = None
    stride: int | None = None
    padding: int | None = None


@register_attention("pooling", PoolingAttentionConfig)
class Pooling(NativeMixer):
    """PoolFormer's mixing (Yu et al. 2021, arXiv:2111.11418): the mean around a token, less the token.

    Shapes:
        q: [B, S, dim_model] with a square S

    Args:
        pool_size: side of a window in tokens.
        stride: distance of neighbouring windows; a token takes the nearest.
        padding: how far windows reach outside the square; half a window by default.
        dropout: probability of zeroing a feature of the result, in training.
        dim_model: features in and out; what comes in by default.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "pooling"

    def __init__(
        self,
        pool_size: Size = 3,
        stride: Size = 1,
        padding: Annotated[int, Field(ge=0)] | None = None,
        dropout: Rate = 0.0,
        dim_model: Size | None = None,
        **superset: Any,
    ) -> None:
        verify(Pooling, pool_size=pool_size, stride=stride, padding=padding, dropout=dropout, dim_model=dim_model)
        sizes = {"pool_size": pool_size, "stride": stride, "padding": padding}
        super().__init__(NativePooling.spec(dim=dim_model or 1, dropout=dropout, **sizes))
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "pooling")

    def within(self, dim: int, bias: bool) -> Spec:
        """For these features, on whose number it does not depend."""
        return self.spec.replace(dim=dim)
