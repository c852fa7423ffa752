"""What the reversible layers of blocks, sequences and models have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from variform.dialects.xformers.components.feedforward.mixture_of_experts import MixtureOfExperts
from variform.ops.reversible import Step, Told, reversible

Call = Callable[[Tensor, Any], Tensor]
"""A branch: (stream, side inputs) -> what is added to the other stream."""

_LOSSES = ("l_aux", "l_z")


def run_in_turn(
    branches: Sequence[tuple[nn.Module, Call]], x1: Tensor, x2: Tensor, given: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Let branches in turn add to one of two streams, and keep the result alone for the backward pass.

    The streams are carried in float32 at least: what is computed back from sums of low precision would drift. Losses
    that mixtures of experts leave on themselves get their gradients too.

    Args:
        branches: the modules, and how each is called.
        x1: the stream that the first branch adds to.
        x2: the stream that it reads.
        given: side inputs; tensors among them get their gradients.

    Returns:
        both streams, in the type of the first.
    """
    dtype = x1.dtype
    leaves, tree = pytree.tree_flatten(dict(given))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def step(module: nn.Module, call: Call) -> Step:
        experts = _experts(module)

        def run(stream: Tensor, sides: Sequence[Tensor]) -> tuple[Tensor, Told]:
            filled = list(rest)
            for place, tensor in zip(places, sides, strict=True):
                filled[place] = tensor
            before = [(part, name, getattr(part, name)) for part in experts for name in _LOSSES]
            try:
                branch = call(stream.to(dtype), pytree.tree_unflatten(filled, tree))
                return branch, tuple(getattr(part, name) for part in experts for name in _LOSSES)
            finally:
                for part, name, value in before:
                    setattr(part, name, value)

        return Step(run, module)

    steps = [step(module, call) for module, call in branches]
    wide = torch.promote_types(dtype, torch.float32)
    y1, y2, told = reversible(steps, x1.to(wide), x2.to(wide), [leaves[place] for place in places])
    owners = [(part, name) for module, _ in branches for part in _experts(module) for name in _LOSSES]
    for (part, name), loss in zip(owners, told, strict=True):
        setattr(part, name, loss)
    return y1.to(dtype), y2.to(dtype)


def _experts(module: nn.Module) -> list[MixtureOfExperts]:
    return [part for part in module.modules() if isinstance(part, MixtureOfExperts)]
