"""FlexAttention: masks and score modifiers compiled into one kernel that skips blocks.

For training on CUDA where a dense mask would be wasteful. On CPU it infers only, after seconds of compilation, and so
runs there only when asked for by name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from variform.ops.attention.call import Call
from variform.ops.attention.held import tensors_of
from variform.ops.attention.plan import conjuncts
from variform.ops.attention.sdpa import fused
from variform.ops.masks import Mask, MaskMod
from variform.ops.masks.counts import block_layout, real_tensors
from variform.ops.scores import ScoreFunction

__all__ = ["FlexBackend"]

_BLOCK = 128
_SHORTEST = 1024
"""Below this many queries or keys a dense mask is not wasteful."""


class FlexBackend:
    """`flex_attention` of torch, compiled."""

    name = "flex"

    def refuses(self, call: Call, training: bool) -> str | None:
        """Dropout, float64, modifiers not point by point, other devices; gradients on CPU; small heads on CUDA."""
        if call.dropout:
            return "FlexAttention has no dropout on the weights"
        if call.target not in ("cpu", "cuda"):
            return f"FlexAttention does not run on {call.target}"
        if call.q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"FlexAttention does not take {call.q.dtype}"
        if any(not modifier.is_pointwise for modifier in call.scores):
            return "a score modifier has no point-wise form"
        if call.target == "cpu" and any(
            tensor.requires_grad for tensor in (call.q, call.k, call.v, *tensors_of(call.scores))
        ):
            return "FlexAttention on CPU has no backward"
        if call.target == "cuda" and min(call.q.shape[-1], call.v.shape[-1]) < 16:
            return "FlexAttention on CUDA needs heads of at least 16 features"
        return None

    def advantage(self, call: Call, training: bool) -> str | None:
        """On CUDA in training: windows, documents and score modifiers on long sequences."""
        if call.target != "cuda" or not training or min(call.q.shape[2], call.k.shape[2]) < _SHORTEST:
            return None
        if call.scores:
            return "score modifiers run inside the kernel"
        if call.q_segments is not None:
            return "blocks between documents are skipped"
        parts = [part for whole in (call.structure, call.mask) if whole is not None for part in conjuncts(whole)]
        if any(part.band() not in ((None, None), (None, 0)) for part in parts):
            return "blocks outside the mask are skipped"
        return None

    def run(self, call: Call) -> Tensor:
        """Compute the call."""
        call.check()
        if isinstance(call.q, FakeTensor):
            # Kernels are not compiled for stand-ins; this has the same shape and keeps as much for backward.
            k, v = call.expanded()
            return fused(call.q, k, v)
        run = cast(Callable[..., Any], flex_attention) if torch.compiler.is_compiling() else _compiled()
        out: Tensor = run(
            call.q,
            call.k,
            call.v,
            score_mod=_score_mod(call),
            block_mask=_block_mask(call),
            scale=call.scale,
            enable_gqa=call.is_grouped,
        )
        return out


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def _score_mod(call: Call) -> ScoreFunction | None:
    functions = tuple(modifier.score_mod(call.q_positions, call.k_positions) for modifier in call.scores)
    if not functions:
        return None

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        for function in functions:
            assert function is not None, "refuses() lets modifiers with a point-wise form through only"
            score = function(score, b, h, q_idx, kv_idx)
        return score

    return mod


def _mask_mod(call: Call) -> MaskMod | None:
    mods: list[MaskMod] = []
    symbol = call.symbolic_mask()
    if symbol is not None:
        mods.append(symbol.mask_mod(call.q_positions, call.k_positions, call.q_segments, call.k_segments))
    if call.q_segments is not None and call.k_segments is not None:
        mods.append(_same_segment(call.q_segments, call.k_segments))
    if call.k_valid is not None:
        mods.append(_valid_key(call.k_valid))
    if not mods:
        return None
    if len(mods) == 1:
        return mods[0]

    def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        seen = mods[0](b, h, q_idx, kv_idx)
        for other in mods[1:]:
            seen = seen & other(b, h, q_idx, kv_idx)
        return seen

    return mod


def _same_segment(q_segments: Tensor, k_segments: Tensor) -> MaskMod:
    q_rows = q_segments if q_segments.dim() == 2 else q_segments[None]
    k_rows = k_segments if k_segments.dim() == 2 else k_segments[None]
    q_shared, k_shared = q_rows.shape[0] == 1, k_rows.shape[0] == 1

    def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_rows[0 if q_shared else b, q_idx] == k_rows[0 if k_shared else b, kv_idx]

    return mod


def _valid_key(k_valid: Tensor) -> MaskMod:
    def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return k_valid[b, kv_idx]

    return mod


def _block_mask(call: Call) -> BlockMask | None:
    symbol, q_len, k_len = call.symbolic_mask(), call.q.shape[2], call.k.shape[2]
    static = call.aligned and call.q_segments is None and call.k_valid is None
    if static and symbol is not None and not symbol.has_tensors and not torch.compiler.is_compiling():
        return _static_block_mask(symbol, q_len, k_len, call.q.device)
    mod = _mask_mod(call)
    if mod is None:
        return None
    heads = call.q.shape[1] if symbol is not None and symbol.has_tensors else None
    return create_block_mask(mod, call.q.shape[0], heads, q_len, k_len, call.q.device, BLOCK_SIZE=_BLOCK)


@functools.lru_cache(maxsize=32)
def _static_block_mask(symbol: Mask, q_len: int, k_len: int, device: torch.device) -> BlockMask:
    """From the block layout: evaluating every pair takes seconds and gigabytes at 16384 positions."""
    with real_tensors():
        layout = block_layout(symbol, q_len, k_len, _BLOCK).to(device)
        order = layout.int().argsort(dim=-1, descending=True, stable=True).int()[None, None]
        counts = layout.sum(dim=-1, dtype=torch.int32)[None, None]
    return BlockMask.from_kv_blocks(
        counts, order, BLOCK_SIZE=_BLOCK, mask_mod=symbol.mask_mod(), seq_lengths=(q_len, k_len)
    )
