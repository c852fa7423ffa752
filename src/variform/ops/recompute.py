"""Results that are cheap to compute again: a linear map of one keeps what the result was made from, not the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Cheap"]


@dataclass(frozen=True)
class Cheap:
    """A tensor, and how to make it anew.

    Args:
        value: the tensor.
        again: computes it from `sources`.
        sources: what it was made from: a tensor, and the parameters, those of the forward pass. A change of one before
            the backward pass is noticed.
    """

    value: Tensor
    again: Callable[..., Tensor]
    sources: tuple[Tensor, ...]

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x + b; the backward pass makes x anew."""
        out: Tensor = _Linear.apply(self.value, weight, bias, self.again, *self.sources)  # type: ignore[no-untyped-call]
        return out


class _Linear(torch.autograd.Function):
    """A linear map that does not keep its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, again: Any, *sources: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *sources)
        ctx.again, ctx.has_bias = again, bias is not None
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *sources = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        for_x = grad @ weight if wants_x else None
        for_weight = rows.transpose(0, 1) @ ctx.again(*sources).flatten(0, -2) if wants_weight else None
        for_bias = rows.sum(0) if wants_bias and ctx.has_bias else None
        return (for_x, for_weight, for_bias, None, *(None for _ in sources))
