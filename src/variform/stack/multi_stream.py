"""Several residual streams a token, through a whole stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Facts
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.parts.kinds import Layer, MultiResidual, Norm, Output, Stack, Streams, call
from variform.stack.pool import LayerPool
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

Size = Annotated[int, Field(gt=0)]


@register("multi_stream")
class MultiStreamStack(Stack):
    """Runs a stack whose layers carry S residual streams a token (hyper connections, arXiv:2409.19606).

    Each stream begins as x, plus a learned vector of its own where they are `distinct`; the result is norm(sum of the
    streams). Every sublayer of the stack has a residual that reads and writes several streams: `hyper_connection` or
    `gated_multi`; other layers are those that treat each stream alike (`keep_skip`, say). Norms of the sublayers before
    and after the body see one stream; an `out_norm`, and the stack's own `norm`, see each.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; [B, L, S, dim] within

    Args:
        stack: what runs.
        residual_streams: how many streams there are (S).
        norm: of their sum; None for none.
        dim: features.
        causal: whether position i may depend on positions <= i only.
        distinct: whether each stream begins with a learned vector of its own.
        std: standard deviation of the streams' initial vectors; while all streams are alike, how they are mixed has
            no effect and learns nothing.
    """

    def __init__(
        self,
        stack: Stack,
        residual_streams: Size,
        norm: Norm | None = None,
        dim: Size = INHERIT,
        causal: bool = inherit(False),
        distinct: bool = True,
        std: Annotated[float, Field(ge=0)] = 0.02,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.norm = norm
        self.std = std
        self.count = residual_streams
        self.embedding = nn.Parameter(torch.empty(residual_streams, dim)) if distinct else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal vectors."""
        if self.embedding is not None:
            nn.init.normal_(self.embedding, 0.0, self.std)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Every layer must carry all streams."""
        return list(_single(facts["stack"], "stack"))

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Spread, run the stack, and sum."""
        watch = streams.get("watch")
        if watch is not None:
            watch.enters(self, x, streams)
        published: dict[str, Any] = {}
        several = x.unsqueeze(2)
        several = several.expand(-1, -1, self.count, -1) if self.embedding is None else several + self.embedding.to(x)
        y = call(self.stack, several, streams, "stack", published).sum(2)
        if self.norm is not None:
            y = self.norm(y, streams.get("condition"))
        if watch is not None:
            watch.leaves(self, y)
        return (y, published) if published else y


def _single(part: Spec, path: str) -> Iterator[Problem]:
    """The parts below that take one stream."""
    if part.part in (LayerStack, TransformerLayer):
        slot = "layers" if part.part is LayerStack else "sublayers"
        for index, child in enumerate(part[slot]):
            yield from _single(described(child), f"{path}.{slot}.{index}")
    elif issubclass(part.part, Layer) and part.part.takes_many:
        return
    elif part.part is LayerPool:  # runs nothing; what it holds is run where else it is named
        for index, child in enumerate(part["layers"]):
            yield from _single(described(child), f"{path}.layers.{index}")
    elif part.part is not Sublayer:
        message = f"{part.kind} {part.name!r} takes one residual stream, and there are several here"
        yield Problem(path, message, hint="a multi_stream stack is a stack of sublayers")
    elif (residual := described(part["residual"])) is None or not issubclass(residual.part, MultiResidual):
        message = (
            f"{'a plain sum' if residual is None else repr(residual.name)} joins one stream, and there are several"
        )
        yield Problem(f"{path}.residual", message, hint="take hyper_connection or gated_multi")
