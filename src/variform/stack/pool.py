"""Layers that are held in one order and run in another."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from variform.core.registry import register
from variform.parts.kinds import Layer, State, Streams
from variform.stack.execute import ModuleList


@register("pool")
class LayerPool(Layer):
    """Holds layers and runs none of them: x stays as it is.

    Where `Shared` layers run in any order, some more than once and some not at all, a pool in front of them says which
    there are and in which order, so that those that do not run keep their parameters.

    Shapes:
        x: [B, L, dim] -> the same

    Args:
        layers: `Shared` layers, which run where else they are named.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = ModuleList(layers)

    @classmethod
    def steps(cls, slot: str) -> bool:
        """Nothing runs."""
        return False

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Nothing."""
        return x

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """None is kept."""
        return {}
