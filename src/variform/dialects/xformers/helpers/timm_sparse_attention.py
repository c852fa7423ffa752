"""A drop-in for the attention of timm's vision transformers, with a mask of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from variform.dialects.xformers.building import verify
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes, read_att_mask
from variform.dialects.xformers.errors import Wrong, config_error
from variform.errors import nearest_divisors
from variform.interop.timm import around_heads, read_mask
from variform.ops.masks import Causal, Mask
from variform.parts.attention.softmax import attend
from variform.parts.kinds import Sides


class TimmSparseAttention(nn.Module):
    """timm's multi-head attention (children `qkv, attn_drop, proj, proj_drop`), sparse where its mask is.

    Its children may be replaced by those of a module it stands in for, whose sizes then count; norms of queries, keys
    and outputs and a gate that are added under timm's names (`q_norm, k_norm, norm, gate`) take effect.

    Shapes:
        x: [B, N, dim] -> [B, N, dim]

    Args:
        dim: features in and out.
        num_heads: number of heads; divides `dim`.
        qkv_bias: learn offsets of queries, keys and values.
        attn_drop: probability of dropping an attention weight, in training.
        proj_drop: probability of zeroing an output feature, in training.
        attn_mask: what may attend to what, in every call: see `read_att_mask`.
        qk_norm: normalise each head's queries and keys.
        scale_norm: normalise what the heads give.
        proj_bias: learn an offset of the output.
        norm_layer: makes the norms.
        device: of the parameters.
        dtype: of the parameters.
        depth: where timm's block stands, which changes nothing.

    Raises:
        ConfigError: sizes or rates that do not fit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        attn_mask: AttMask | None = None,
        *,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        norm_layer: Callable[..., nn.Module] | None = None,
        device: Any = None,
        dtype: Any = None,
        depth: int = 0,
    ) -> None:
        super().__init__()
        verify(TimmSparseAttention, dim=dim, num_heads=num_heads, qkv_bias=qkv_bias)
        if num_heads <= 0 or dim % num_heads:
            hint = nearest_divisors(dim, max(1, num_heads))
            raise config_error([Wrong("num_heads", f"must divide dim = {dim}", num_heads, hint, like=AssertionError)])
        if (qk_norm or scale_norm) and norm_layer is None:
            raise config_error([Wrong("norm_layer", "norms are asked for: what makes them?", like=AssertionError)])
        where = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **where)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **where)
        self.proj_drop = nn.Dropout(proj_drop)
        if norm_layer is not None and qk_norm:
            self.q_norm, self.k_norm = (norm_layer(dim // num_heads, **where) for _ in range(2))
        if norm_layer is not None and scale_norm:
            self.norm = norm_layer(dim, **where)
        self.attn_mask = attn_mask

    def forward(self, x: Tensor, attn_mask: Tensor | Mask | None = None, is_causal: bool = False) -> Tensor:
        """Attend over the tokens.

        Args:
            x: the tokens.
            attn_mask: timm's own, beside the one of the constructor: bool, True = may attend, or floats that are added.
            is_causal: token i attends to tokens <= i.

        Raises:
            CallError: a mask that does not fit.
        """
        sides = self._sides(attn_mask, is_causal, Sizes(x.shape[0], self.num_heads, x.shape[1], x.shape[1]))
        dropout = self.attn_drop.p if self.training else 0.0
        return around_heads(self, x, lambda q, k, v: attend(q, k, v, sides, None, None, dropout, "auto"))

    def _sides(self, given: Tensor | Mask | None, is_causal: bool, sizes: Sizes) -> Sides:
        own, scores = read_att_mask(self.attn_mask, sizes)
        theirs, more = read_mask(given)
        found = [mask for mask in (own, theirs, Causal() if is_causal else None) if mask is not None]
        mask = None
        for one in found:
            mask = one if mask is None else mask & one
        return Sides(mask=mask, scores=(*scores, *more))
