"""Comparisons of tensors, with messages that say where and by how much."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

EXACT = 1e-10
"""How far float64 results of the same function may be apart, relative to their size."""


def same(got: Tensor, wanted: Tensor, what: str, tolerance: float = EXACT) -> None:
    """Fail unless two tensors agree to `tolerance`, relative to the largest entry (at least 1)."""
    assert got.shape == wanted.shape, f"{what}: shape {list(got.shape)} instead of {list(wanted.shape)}"
    if not got.numel():
        return
    assert bool(torch.isfinite(got).all()), f"{what}: not finite"
    scale = max(1.0, float(wanted.detach().abs().max()))
    error = float((got.detach().double() - wanted.detach().double()).abs().max())
    assert error <= tolerance * scale, f"{what}: off by {error:.2e} (values up to {scale:.2e})"


def identical(got: Tensor, wanted: Tensor, what: str) -> None:
    """Fail unless two tensors are equal bit by bit."""
    assert got.shape == wanted.shape, f"{what}: shape {list(got.shape)} instead of {list(wanted.shape)}"
    if not torch.equal(got, wanted):
        error = float((got.detach().double() - wanted.detach().double()).abs().max())
        raise AssertionError(f"{what}: differs by {error:.2e}")


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.detach().double().square().mean().sqrt()) if x.numel() else 0.0


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a nested value."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def gradients(loss: Tensor, model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradient of a scalar for every parameter; zeros where it has none."""
    named = dict(model.named_parameters())
    found: Any = [None] * len(named)
    if named and loss.requires_grad:
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


class Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs float64 operations as a plain implementation in a narrow type would: each result is rounded to it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and round what is new."""
        out = func(*args, **(kwargs or {}))
        if func._schema.is_mutable or any(r.alias_info is not None for r in func._schema.returns):
            return out
        return pytree.tree_map(self._round, out)

    def _round(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype == torch.float64:
            return value.to(self.dtype).to(torch.float64)
        return value


def largest(x: Tensor) -> float:
    """The largest magnitude, at least 1."""
    return max(1.0, float(x.detach().abs().max())) if x.numel() else 1.0


def is_close(a: float, b: float, relative: float) -> bool:
    """Whether two figures agree relatively."""
    return math.isclose(a, b, rel_tol=relative, abs_tol=0.0)
