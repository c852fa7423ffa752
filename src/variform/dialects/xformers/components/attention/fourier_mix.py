"""Fourier transforms in place of attention."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.spec import Spec
from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.mixing import NativeMixer
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.dialects.xformers.errors import CallError
from variform.parts.kinds import Streams
from variform.parts.mixer.fourier import FourierMix as NativeFourier

Rate = Annotated[float, Field(ge=0, lt=1)]


@register_attention("fourier_mix", AttentionConfig)
class FourierMix(NativeMixer):
    """FNet's mixing (Lee-Thorp et al. 2021, arXiv:2105.03824): the real part of a transform of tokens and features.

    Within `MultiHeadDispatch` the transform is over all features, as in the paper, and the output projection follows.

    Args:
        dropout: probability of zeroing a transformed feature, in training.
        per_head: transform the features of each head on their own, as upstream did; needs `num_heads`.
        num_heads: number of heads.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "fourier_mix"

    def __init__(
        self, dropout: Rate, per_head: bool = False, num_heads: Annotated[int, Field(gt=0)] = 1, **superset: Any
    ) -> None:
        verify(FourierMix, dropout=dropout, per_head=per_head, num_heads=num_heads)
        groups = num_heads if per_head else 1
        super().__init__(NativeFourier.spec(dim=groups, groups=groups, dropout=dropout))
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "fourier_mix")
        self.requires_skip_multi_head = False

    def run(self, x: Tensor, streams: Streams) -> Tensor:
        """Transform a sequence."""
        groups = self.native.spec["groups"]
        if x.shape[-1] % groups:
            raise CallError(f"{x.shape[-1]} features do not divide by {groups} heads")
        return super().run(x, streams)

    def within(self, dim: int, bias: bool) -> Spec:
        """With the linear map that follows."""
        return self.spec.replace(dim=dim, project=True, bias=bias)
