"""act(gate) * up, without keeping act(gate) for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["gated"]


def gated(gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """act(gate) * up; the backward pass of `silu`, `gelu`, `sigmoid` and `relu` computes act(gate) again.

    A third less is kept than autograd would keep. Compilers decide by themselves what they keep.

    Shapes:
        gate, up: the same shape -> that
    """
    slope = _SLOPES.get(act)
    if slope is None or torch.compiler.is_compiling() or not (torch.is_grad_enabled() and gate.requires_grad):
        return act(gate) * up
    out: Tensor = _Gated.apply(gate, up, act, slope)  # type: ignore[no-untyped-call]
    return out


class _Gated(torch.autograd.Function):
    """Plain operations in the backward pass, so that it can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, up: Tensor, act: Any, slope: Any) -> Tensor:
        out: Tensor = act(gate).mul_(up) if gate.dtype is up.dtype else act(gate) * up
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gate, up, ctx.act, ctx.slope = inputs
        ctx.save_for_backward(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        wants_gate, wants_up = ctx.needs_input_grad[:2]
        for_gate = ctx.slope(gate, grad * up) if wants_gate else None
        return for_gate, grad * ctx.act(gate) if wants_up else None, None, None


def _silu_slope(x: Tensor, grad: Tensor) -> Tensor:
    if torch.is_grad_enabled():  # to be differentiated again, which the fused operation cannot be
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))
    fused: Tensor = torch.ops.aten.silu_backward(grad, x)
    return fused


def _gelu_slope(x: Tensor, grad: Tensor) -> Tensor:
    slope: Tensor = torch.ops.aten.gelu_backward(grad, x)
    return slope


def _sigmoid_slope(x: Tensor, grad: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return grad * s * (1 - s)


def _relu_slope(x: Tensor, grad: Tensor) -> Tensor:
    return grad * (x > 0)


_SLOPES: dict[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    F.silu: _silu_slope,
    F.gelu: _gelu_slope,
    torch.sigmoid: _sigmoid_slope,
    F.relu: _relu_slope,
}
