"""Attentions that users register with upstream's decorator, as parts of the core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variform.core.part import Can, Part
from variform.dialects.xformers.adopting import Adopted, adopt
from variform.dialects.xformers.components.attention.base import Attention
from variform.dialects.xformers.components.attention.masking import Sizes
from variform.dialects.xformers.components.attention.merging import call_foreign
from variform.dialects.xformers.utils import Item
from variform.ops.masks import Mask
from variform.parts.kinds import Attention as NativeAttention
from variform.parts.kinds import Mixer, Output, Sides, Streams


def adopt_attention(name: str, item: Item) -> None:
    """Let an attention of the dialect be a part of the core as well."""
    adopt(name, item, lambda trial: AdoptedMixer if trial.requires_skip_multi_head else AdoptedAttention)


class _Adopted(Adopted, Part):
    """What both have in common: the class is built from its own keys, and its flags say what it can do."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.module: Attention = self.make(arguments)
        self.causal = bool(arguments.get("causal", False))

    @classmethod
    def can_of(cls, trial: Attention, causal: bool) -> Can:
        """What the flags of an instance say.

        Args:
            trial: an instance.
            causal: whether it has that key.
        """
        masks = trial.supports_attention_mask
        return Can(
            causal=causal,
            key_padding=masks or trial.supports_key_padding_mask,
            attention_mask=masks,
            packed=masks,
            cross=not trial.requires_same_k_q_dimensions,
            lengths=not trial.requires_squared_context,
            decode=False,
        )

    def _call(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides, sizes: Sizes) -> Tensor:
        return call_foreign(self.module, q, k, v, _pair_mask(sides, sizes), sides.k_valid, sizes)


class AdoptedAttention(_Adopted, NativeAttention):
    """A head-level attention of a user: it gets heads folded into the batch, unless its flags say otherwise."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        """Attend."""
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return self._call(q, k, v, sides, Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2]))


class AdoptedMixer(_Adopted, Mixer):
    """An attention of a user that owns its heads."""

    reads = frozenset({"valid", "segments", "mask", "positions"})

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Attend over `x` itself."""
        ids, positions, valid = streams.get("segments"), streams.get("positions"), streams.get("valid")
        sides = Sides(positions, positions, ids, ids, valid, valid, streams.get("mask"))
        return self._call(x, x, x, sides, Sizes(x.shape[0], 1, x.shape[1], x.shape[1]))


def _pair_mask(sides: Sides, sizes: Sizes) -> Tensor | None:
    """The mask and the documents of a call as bool [B, Sq, Sk], or [B, heads, Sq, Sk]."""
    allowed = None
    if sides.q_segments is not None and sides.k_segments is not None:
        allowed = sides.q_segments[..., :, None] == sides.k_segments[..., None, :]
    if isinstance(sides.mask, Mask):
        count = torch.arange(max(sizes.queries, sizes.keys))
        q = count[: sizes.queries] if sides.q_positions is None else sides.q_positions
        k = count[: sizes.keys] if sides.k_positions is None else sides.k_positions
        dense = sides.mask.dense(q, k, sides.q_segments, sides.k_segments)
        allowed = dense if allowed is None else _joined(dense, allowed)
    return allowed


def _joined(dense: Tensor, same: Tensor) -> Tensor:
    """Both at once, where one may count heads and the other does not."""
    return dense & (same[..., None, :, :] if dense.dim() == 4 and same.dim() == 3 else same)
