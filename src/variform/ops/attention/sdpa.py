"""torch's fused attention: the default backend, with the mask in the form its kernels are fast with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from variform.ops.attention.call import Call
from variform.ops.attention.memory import with_memory
from variform.ops.learned_scores import AddedScores
from variform.ops.weightings import Normaliser, SinkWeights

__all__ = ["SdpaBackend", "fused", "without_empty_rows"]


class SdpaBackend:
    """`scaled_dot_product_attention`, with `is_causal` where that is the whole mask and a 2-D or 4-D mask elsewhere."""

    name = "sdpa"
    weighs = True

    def refuses(self, call: Call, training: bool) -> str | None:
        """Modifiers that are not an added bias, and weights other than those of softmax with or without a sink."""
        if call.weights is not None and _sink(call.weights) is None:
            return f"it computes softmax alone, not {type(call.weights).__name__}"
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
        if call.weights is not None:
            notes.append("the sink is a key of zeros more, with a bias")
        if bias is not None and bias.requires_grad:
            notes.append("a learned bias takes the unfused path")
        if not call.is_plain_causal and (call.symbolic_mask() is not None or call.q_segments is not None):
            notes.append("a dense mask is built; masked pairs are computed too")
        return notes

    def run(self, call: Call) -> Tensor:
        """Compute the call."""
        if call.weights is not None:
            call = _with_sink_key(call)
        if call.is_unrestricted:
            return _run(call, None, causal=False)
        causal = call.is_plain_causal
        mask = None if causal else _mask(call)
        if mask is None or call.q.device.type == "cpu":
            return _run(call, mask, causal)
        return _without_empty_rows(call, mask)


def fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
    grouped: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` in the form that its fused kernels take; arguments as there."""
    if not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1:
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    dim, dim_v = q.shape[-1], v.shape[-1]
    if dim != dim_v:
        # Zeros added to the smaller head, because fused kernels want equal sizes.
        scale = dim**-0.5 if scale is None else scale
        q, k = (functional.pad(t, (0, dim_v - dim)) if dim < dim_v else t for t in (q, k))
        v = functional.pad(v, (0, dim - dim_v)) if dim_v < dim else v
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return out if dim <= dim_v else out[..., :dim_v]


def _sink(weights: Normaliser) -> Tensor | None:
    """The scores of a sink, [H], where there is nothing else to the weights."""
    return weights.sink if isinstance(weights, SinkWeights) and weights.inner is None else None


def _with_sink_key(call: Call) -> Call:
    """A sink as a key and a value of zeros in front, whose scores a bias makes the sink's."""
    sink = None if call.weights is None else _sink(call.weights)
    assert sink is not None, "refuses() lets plain sinks through only"
    heads, key_heads, q_len, k_len = call.q.shape[1], call.k.shape[1], call.q.shape[2], call.k.shape[2]
    front = sink.view(1, heads, 1, 1).expand(-1, -1, q_len, -1)
    # Scores given for every key of the call say nothing of this one.
    given = tuple(AddedScores(functional.pad(m.tensor, (1, 0))) if type(m) is AddedScores else m for m in call.scores)
    wider = with_memory(
        replace(call, weights=None, scores=given),
        call.k.new_zeros(key_heads, 1, call.k.shape[3]),
        call.v.new_zeros(key_heads, 1, call.v.shape[3]),
    )
    return replace(wider, scores=(*wider.scores, AddedScores(functional.pad(front, (0, k_len)))))


def _run(call: Call, mask: Tensor | None, causal: bool) -> Tensor:
    k, v, grouped = call.k, call.v, call.is_grouped
    shared_mask = mask is None or mask.dim() == 2 or mask.shape[1] == 1
    if grouped and shared_mask and call.q.shape[2] == 1 and not causal:
        # One query: the heads of a group stand as rows, so that keys are read once a group (1.5 to 2.6 times faster).
        rows = call.q.reshape(call.q.shape[0], k.shape[1], -1, call.q.shape[3])
        out = fused(rows, k, v, mask, dropout=call.dropout, scale=call.scale)
        return out.reshape(*call.q.shape[:3], v.shape[3])
    if grouped and mask is not None and call.q.device.type != "cpu":
        # The CUDA kernels that take a mask do not take grouped heads.
        (k, v), grouped = call.expanded(), False
    return fused(call.q, k, v, mask, causal=causal, dropout=call.dropout, scale=call.scale, grouped=grouped)


def _without_empty_rows(call: Call, mask: Tensor) -> Tensor:
    """Rows that attend to nothing see every key and are zeroed after, for kernels that answer NaN to them.

    The CPU kernels give zeros by themselves, in forward and backward.
    """
    mask, empty = without_empty_rows(mask)
    return _run(call, mask, causal=False).masked_fill(empty, 0.0)


def without_empty_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """A bool or float mask whose rows that attend to nothing see every key, and which rows those are."""
    empty = (mask if mask.dtype == torch.bool else mask != -torch.inf).any(dim=-1, keepdim=True).logical_not()
    return mask | empty if mask.dtype == torch.bool else mask.masked_fill(empty, 0.0), empty


def _mask(call: Call) -> Tensor | None:
    """Bool mask, or a float bias with -inf where not attended; 2-D or 4-D."""
    mask = call.full_mask()
    bias = _bias(call) if call.scores else None
    if bias is None:
        return mask
    return bias if mask is None else bias.masked_fill(~mask, -torch.inf)


def _bias(call: Call) -> Tensor | None:
    """The sum of the modifiers; float32 where the kernel takes it, as bfloat16 drops the fraction of large biases."""
    half = call.q.element_size() < 4 and call.q.device.type == "cpu"
    dtype = torch.float32 if half else call.q.dtype
    total: Tensor | None = None
    for modifier in call.scores:
        bias = call.bias_of(modifier, dtype)
        assert bias is not None, "refuses() lets additive modifiers through only"
        total = bias if total is None else total + bias
    return total
