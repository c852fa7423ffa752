"""Reversible blocks of a model: their sublayers in turn, as one function that keeps its result alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variform.ops import reversible as ops

Given = Mapping[str, Any]
"""Side inputs of blocks by name: memory, padding, positions, masks; None where there is none."""

Step = Callable[[Tensor, Given], Tensor]
"""A sublayer in its wrappers."""


def run_reversible(steps: Sequence[tuple[nn.Module, Step]], x: Tensor, given: Given) -> Tensor:
    """The mean of two streams that begin as `x`, after each step in turn has added its branch of one to the other.

    Args:
        steps: the modules and how they are called.
        x: [B, S, dim].
        given: side inputs; tensors among them get their gradients.
    """
    names = [name for name, value in given.items() if isinstance(value, Tensor)]

    def branch(module: nn.Module, step: Step) -> ops.Step:
        def run(stream: Tensor, sides: Sequence[Tensor]) -> Tensor:
            return step(stream.to(x.dtype), {**given, **dict(zip(names, sides, strict=True))})

        return ops.Step(run, module)

    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    sides = [given[name] for name in names]
    a, b = ops.reversible([branch(module, step) for module, step in steps], wide, wide, sides)
    mean: Tensor = (a + b) / 2
    return mean.to(x.dtype)
