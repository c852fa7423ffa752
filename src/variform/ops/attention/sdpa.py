"""torch's fused attention: the default backend, with the mask in the form its kernels are fast with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from variform.ops.attention.call import Call

__all__ = ["SdpaBackend"]


class SdpaBackend:
    """`scaled_dot_product_attention`, with `is_causal` where that is the whole mask and a 2-D or 4-D mask elsewhere."""

    name = "sdpa"

    def refuses(self, call: Call, training: bool) -> str | None:
        """Modifiers that are not an added bias."""
        for modifier in call.scores:
            if not modifier.is_additive:
                return f"{type(modifier).__name__} is not an added bias"
        return None

    def advantage(self, call: Call, training: bool) -> str | None:
        """None: it is the default, not an alternative."""
        return None

    def notes(self, call: Call) -> list[str]:
        """What this call makes the fused kernels lose."""
        notes = []
        if call.target == "cpu" and call.dropout:
            notes.append("dropout takes the unfused path on CPU")
        bias = _bias(call) if call.scores else None
        if bias is not None and bias.requires_grad:
            notes.append("a learned bias takes the unfused path")
        if not call.is_plain_causal and (call.symbolic_mask() is not None or call.q_segments is not None):
            notes.append("a dense mask is built; masked pairs are computed too")
        return notes

    def run(self, call: Call) -> Tensor:
        """Compute the call."""
        q, k, v = call.q, call.k, call.v
        causal = call.is_plain_causal and not call.scores
        mask = None if causal else _mask(call)
        if k.shape[1] != q.shape[1]:
            groups = call.groups
            if q.device.type != "cpu" and mask is not None:
                # The CUDA kernels that take a mask do not take grouped heads.
                k, v = call.expanded()
                groups = 1
        else:
            groups = 1
        if v.shape[-1] != q.shape[-1]:
            return _unequal(call, k, v, mask, causal, groups)
        return _fused(q, k, v, mask, call.dropout, causal, call.scale, groups)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None, groups: int
) -> Tensor:
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=groups > 1
    )


def _unequal(call: Call, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, groups: int) -> Tensor:
    """Value heads of another size than query heads: zeros added to the smaller, so that a fused kernel runs."""
    q, dim, dim_v = call.q, call.q.shape[-1], call.v.shape[-1]
    if dim_v < dim:
        return _fused(q, k, functional.pad(v, (0, dim - dim_v)), mask, call.dropout, causal, call.scale, groups)[
            ..., :dim_v
        ]
    padded = (0, dim_v - dim)
    q, k = functional.pad(q, padded), functional.pad(k, padded)
    return _fused(q, k, v, mask, call.dropout, causal, call.softmax_scale, groups)


def _mask(call: Call) -> Tensor | None:
    """Bool mask, or a float bias with -inf where not attended; 2-D or 4-D."""
    mask = call.full_mask()
    bias = _bias(call) if call.scores else None
    if bias is None:
        return mask
    return bias if mask is None else bias.masked_fill(~mask, -torch.inf)


def _bias(call: Call) -> Tensor | None:
    """The sum of the modifiers, in float32 where the kernel takes it: a bias of hundreds loses its fraction in bfloat16."""
    q_pos, k_pos = call.positions()
    half = call.q.element_size() < 4 and call.q.device.type == "cpu"
    dtype = torch.float32 if half else call.q.dtype
    total: Tensor | None = None
    for modifier in call.scores:
        bias = modifier.additive(q_pos, k_pos, dtype)
        assert bias is not None, "refuses() lets additive modifiers through only"
        total = bias if total is None else total + bias
    return total
