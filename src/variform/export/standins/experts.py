"""Experts as a standalone file has them: all in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[[int, Tensor], Tensor]


def visit(
    x: Tensor, index: Tensor, weight: Tensor, experts: int, run: Run, group: Any = None, most: int | None = None
) -> Tensor:
    """The weighted sum of what the chosen experts make of each token: x [T, D], index and weight [T, k]."""
    choices = index.shape[1]
    flat = index.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts)[:experts].tolist()
    order = order[: sum(counts)]
    out = run_sorted(x[order // choices], counts, run)
    placed = out.new_zeros(flat.numel(), out.shape[-1]).index_copy(0, order, out)
    return (placed.view(-1, choices, out.shape[-1]) * weight.to(out.dtype).unsqueeze(-1)).sum(1)


def run_sorted(x: Tensor, counts: Sequence[int], run: Run, group: Any = None) -> Tensor:
    """Each expert on its tokens: those of the first, then those of the second, ..."""
    pieces = torch.split(x, list(counts))
    return torch.cat([run(number, piece.unsqueeze(0)).squeeze(0) for number, piece in enumerate(pieces)])
