"""A head behind a small network of its own, and one behind a user's module."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.dims import Shape
from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.parts.embedding.module import own_module
from variform.parts.head.mixture import inner_shape
from variform.parts.kinds import Head, Norm, Streams
from variform.parts.linear import Linear


@register("probe")
class ProbeHead(Head):
    """head(W3 f(W2 f(W1 norm(x)))) with f = LeakyReLU: reads an answer off features that were not made to give it.

    Shapes:
        x: [B, L, dim] -> what the head gives

    Args:
        head: gives the answer.
        norm: of the features.
        hidden: features between the maps; twice `dim` when None.
        dim: features.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    def __init__(
        self,
        head: Head,
        norm: Norm | None = None,
        hidden: Annotated[int, Field(gt=0)] | None = None,
        dim: Annotated[int, Field(gt=0)] = INHERIT,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        inner = hidden or 2 * dim
        self.norm = norm
        self.up = Linear(dim, inner, std=init_std)
        self.between = Linear(inner, inner, std=init_std)
        self.down = Linear(inner, dim, std=init_std)
        self.head = head

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """The head's."""
        return inner_shape(args, x)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Probe, then answer."""
        if self.norm is not None:
            x = self.norm(x)
        x = self.down(F.leaky_relu(self.between(F.leaky_relu(self.up(x)))))
        return self.head(x, streams)


class ModuleThenHead(Head):
    """A user's own module before a head: head(module(x)); as `ModuleHead`, it is no registered part.

    Shapes:
        x: [B, L, dim] -> what the head gives

    Args:
        module: a `torch.nn.Module` from features to features.
        head: gives the answer.
    """

    name: ClassVar[str] = "module_then_head"

    def __init__(self, module: Any, head: Head) -> None:
        super().__init__()
        self.module = own_module(module)
        self.head = head

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Ask the module, then the head."""
        return self.head(self.module(x), streams)
