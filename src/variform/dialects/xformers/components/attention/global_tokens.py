"""Attention through global tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes
from variform.dialects.xformers.components.attention.native import SparseFirst
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.dialects.xformers.errors import CallError, Wrong, config_error
from variform.parts.attention.patterned import GlobalAttention as NativeGlobal
from variform.parts.kinds import Sides

Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclass
class GlobalAttentionConfig(AttentionConfig):
    """The configuration of `GlobalAttention`."""

    attention_query_mask: Tensor | None = None
    causal: bool | None = None
    force_sparsity: bool | None = None


@register_attention("global", GlobalAttentionConfig)
class GlobalAttention(SparseFirst):
    """Global tokens see all and are seen by all (Longformer, Beltagy et al. 2020, arXiv:2004.05150).

    The other tokens see the global ones alone, themselves not included; one that sees none, as those before the first
    global token with `causal`, gets zeros. A sequence shorter than the mask takes its leading part.

    Args:
        dropout: probability of dropping an attention weight, in training.
        attention_query_mask: which tokens are global, bool [N] or [N, 1].
        causal: only the past.
        force_sparsity: visit the tiles of the pattern alone wherever that can be done, faster or not.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "global"

    def __init__(
        self,
        dropout: Rate,
        attention_query_mask: Tensor,
        causal: bool = False,
        force_sparsity: bool = False,
        **superset: Any,
    ) -> None:
        verify(GlobalAttention, dropout=dropout, causal=causal, force_sparsity=force_sparsity)
        tokens = _tokens(attention_query_mask)
        super().__init__(NativeGlobal.spec(dropout=dropout, causal=causal, tokens=tokens))
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "global")
        self.longest = attention_query_mask.numel()
        self.force_sparsity = force_sparsity

    def sides(
        self, att_mask: AttMask | None, padding: Tensor | None, sizes: Sizes, positions: Tensor | None = None
    ) -> Sides:
        """As for every attention; refuses a sequence that the mask does not reach."""
        if sizes.keys > self.longest:
            raise CallError(f"the attention_query_mask tells of {self.longest} tokens, the sequence has {sizes.keys}")
        return super().sides(att_mask, padding, sizes, positions)


def _tokens(mask: Any) -> tuple[int, ...]:
    """The positions of global tokens."""
    fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.numel() == max(mask.shape, default=0) > 0
    if not fits or mask.dim() > 2:
        found = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        message = f"bool [N] or [N, 1], True = a global token, is needed, not {found}"
        raise config_error([Wrong("attention_query_mask", message, like=AssertionError)])
    return tuple(torch.nonzero(mask.flatten())[:, 0].tolist())
