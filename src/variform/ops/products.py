"""Linear maps, by the quicker of two kernels where no gradient is wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

__all__ = ["linear"]

LARGE = 2**18
"""Weights of so many numbers are worth the 10 us more that a call of the other kernel takes."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b.

    torch's float32 products are MKL's, which on processors of AMD does without AVX-512, and reads the weights for one
    row by one thread. oneDNN, which torch has beside it, takes 0.4 to 0.9 of that time where weights are large, over
    the same weights as they lie in memory. It is called without gradients alone, and for plain tensors: who counts,
    traces, transforms or compiles operations meets the usual one. `torch.backends.mkldnn.flags(enabled=False)` switches
    it off.

    Shapes:
        x: [..., inputs], weight: [outputs, inputs], bias: [outputs] -> [..., outputs]
    """
    # What is traced must not depend on sizes; most calls end with the first line.
    if torch.is_grad_enabled() or torch._C._get_tracing_state() is not None or weight.numel() < LARGE:
        return F.linear(x, weight, bias)
    kernel = _kernel() if not torch.compiler.is_compiling() and _served(x, weight, bias) else None
    return F.linear(x, weight, bias) if kernel is None else kernel(x, weight, bias, "none", [], "")


def _served(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel computes the same for these tensors, here and now, and is likely to be quicker."""
    return (
        type(weight) in _PLAIN
        and type(x) is Tensor
        and (bias is None or (type(bias) in _PLAIN and bias.dtype is torch.float32))
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.is_cpu
        and weight.is_cpu
        and weight.is_contiguous()
        and weight.dim() == 2
        and x.dim() > 1
        and x.shape[-1] == weight.shape[1]
        and x.numel() > 0
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and torch._C._get_mkldnn_enabled()  # unless the user has switched it off
    )


_PLAIN = (Tensor, torch.nn.Parameter)


@cache
def _kernel() -> Callable[..., Tensor] | None:
    """oneDNN's linear map, where it is known to be quicker than what torch calls."""
    facts: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not torch._C.has_mkl or not torch._C._has_mkldnn:
        return None
    if not facts.get("avx512_f") or not str(facts.get("cpu_name")).startswith("AMD"):
        return None
    found: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if found is None else found.default
