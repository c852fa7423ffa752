"""Sliding-window attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.native import SparseFirst
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.dialects.xformers.errors import Wrong, config_error
from variform.parts.attention.softmax import LocalAttention as NativeLocal

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class LocalAttentionConfig(AttentionConfig):
    """The configuration of `LocalAttention`."""

    causal: bool | None = None
    window_size: int | None = None
    force_sparsity: bool | None = None


@register_attention("local", LocalAttentionConfig)
class LocalAttention(SparseFirst):
    """Attention in a sliding window (Longformer, Beltagy et al. 2020, arXiv:2004.05150).

    Without `causal` a query sees `window_size` positions, itself in their middle. With `causal` it sees itself and
    the `window_size` positions before it, one more than the name says; so it was upstream.

    Args:
        dropout: probability of dropping an attention weight, in training.
        causal: only the past.
        window_size: how far a query sees; odd unless causal.
        force_sparsity: visit the tiles of the pattern alone wherever that can be done, faster or not.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "local"

    def __init__(
        self,
        dropout: Rate = 0.0,
        causal: bool = False,
        window_size: Size = 5,
        force_sparsity: bool = False,
        **superset: Any,
    ) -> None:
        verify(LocalAttention, dropout=dropout, causal=causal, window_size=window_size, force_sparsity=force_sparsity)
        if not causal and window_size % 2 == 0:
            message = "a window to both sides is centred on its query: an odd size is needed"
            near = f"nearest: {window_size - 1} or {window_size + 1}"
            raise config_error([Wrong("window_size", message, window_size, near, like=AssertionError)])
        window = window_size + 1 if causal else window_size
        super().__init__(NativeLocal.spec(dropout=dropout, causal=causal, window=window))
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "local")
        self.window_size = window_size
        self.force_sparsity = force_sparsity
