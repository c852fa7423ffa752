"""Attention by large convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.mixing import NativeMixer
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.parts.mixer.visual import Visual as NativeVisual

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclass
class VisualAttentionConfig(AttentionConfig):
    """The configuration of `Visual`."""

    dim_model: int | None = None


@register_attention("visual", VisualAttentionConfig)
class Visual(NativeMixer):
    """Large-kernel attention of the Visual Attention Network (Guo et al. 2022, arXiv:2202.09741).

    Shapes:
        q: [B, S, dim_model] with a square S

    Args:
        dim_model: features in and out.
        dropout: probability of zeroing a feature of the result, in training.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "visual"

    def __init__(self, dim_model: Size, dropout: Rate = 0.0, **superset: Any) -> None:
        verify(Visual, dim_model=dim_model, dropout=dropout)
        super().__init__(NativeVisual.spec(dim=dim_model, dropout=dropout))
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "visual")
