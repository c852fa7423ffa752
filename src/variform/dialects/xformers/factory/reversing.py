"""Reversible blocks of a model: their sublayers in turn, as one function that keeps its result alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from variform.dialects.xformers.components.branches import run_in_turn

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
    a, b = run_in_turn(steps, x, x, given)
    return (a + b) / 2
