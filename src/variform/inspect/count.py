"""Counting while a model runs on stand-in tensors: floating-point operations, and the memory behind tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from variform.ops.attention.call import Call
from variform.ops.attention.meter import inside_attention

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""Attention of programs, for which torch has no formula; that of parts is metered."""

_WITH_ADDEND = {torch.ops.aten.addmm, torch.ops.aten.baddbmm}
"""Products that add their first operand."""


@dataclass(slots=True)
class Figures:
    """What one part costs, its children included; a multiply-add counts 2.

    Args:
        flops: operations of the forward pass; attention counts the pairs its mask visits.
        flops_dense: the same, with attention over the full square.
        flops_backward: operations of the backward pass, without what is computed again.
        activation_bytes: what the forward pass keeps for the backward pass, parameters and buffers excluded.
    """

    flops: int = 0
    flops_dense: int = 0
    flops_backward: int = 0
    activation_bytes: int = 0

    def add(self, other: Figures) -> None:
        """Add another part's figures to these."""
        self.flops += other.flops
        self.flops_dense += other.flops_dense
        self.flops_backward += other.flops_backward
        self.activation_bytes += other.activation_bytes


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports matrix products and convolutions to `report`, by torch's own formulas, and fused attention.

    Each operand that needs a gradient costs the forward's operations once more in the backward pass. What runs
    inside a metered attention is left out: the attention accounts for itself.
    """

    def __init__(self, report: Callable[[Figures], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.report = report

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        out = func(*args, **(kwargs or {}))
        if inside_attention():
            return out
        formula = flop_registry.get(func._overloadpacket)
        if func._overloadpacket is _FUSED:
            self.report(_fused_figures(args, kwargs or {}))
        elif formula is not None:
            flops = int(formula(*args, **(kwargs or {}), out_val=out))
            self.report(Figures(flops, flops, flops * sum(factor.requires_grad for factor in _factors(func, args))))
        return out


def _fused_figures(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Figures:
    """Two products over all pairs, or over those that causality leaves."""
    (batch, heads, queries, dim), (keys, dim_value) = args[0].shape, args[2].shape[2:]
    effort = 2 * batch * heads * (dim + dim_value)
    is_causal = args[4] if len(args) > 4 else kwargs.get("is_causal", False)
    low = min(queries, keys)
    visited = low * (low + 1) // 2 + (queries - low) * keys if is_causal else queries * keys
    backward = 2 * effort * visited if any(factor.requires_grad for factor in args[:3]) else 0
    return Figures(effort * visited, effort * queries * keys, backward)


def _factors(func: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """The two operands that are multiplied; an added one is not among them."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return tensors[1:3] if func._overloadpacket in _WITH_ADDEND else tensors[:2]


def attention_figures(call: Call) -> Figures:
    """The two products of one attention; backward they are four, where a gradient is needed."""
    visited, dense = call.flops()
    return Figures(visited, dense, 2 * visited if call.needs_grad else 0)


def storage_of(tensor: Tensor) -> tuple[int, Any]:
    """The identity of the memory behind a tensor, and the memory itself (to keep the identity from being reused)."""
    storage = tensor.untyped_storage()
    return storage._cdata, storage
