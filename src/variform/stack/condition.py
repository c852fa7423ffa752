"""A map of the condition that all layers of a stack share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Facts
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import ShapeError
from variform.parts.kinds import Output, Stack, Streams, call
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


def condition_size(stack: Spec) -> int | None:
    """Features of the condition that a call of a stack, described, needs; None where no part of it reads one."""
    sizes = (spec["dim_condition"] for _, spec in stack.walk() if "condition" in spec.part.reads)
    return next(sizes, None)


@register("conditioned")
class ConditionedStack(Stack):
    """Runs a stack whose adaptive parts see a map of the condition: c <- silu(W c), once for all layers.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; condition: [B, dim_condition] or [B, L, dim_condition]

    Args:
        stack: what runs; its `dim_condition` is `expansion` times the one here.
        expansion: features of the mapped condition for each of the given.
        dim_condition: features of the condition.
        causal: position i depends on positions <= i only, for the stack.

    Raises:
        ShapeError: there is no condition.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"condition"})

    def __init__(
        self, stack: Stack, expansion: Size = 4, dim_condition: Size = INHERIT, causal: bool = inherit(False)
    ) -> None:
        super().__init__()
        self.stack = stack
        self.map = Linear(dim_condition, dim_condition * expansion, bias=False)

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The stack sees the mapped condition."""
        return {"dim_condition": facts["dim_condition"] * facts["expansion"]}

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """What the stack gives."""
        inner = described(facts["stack"])
        given: Facts = inner.part.gives({**facts, **dict(inner.args)})
        return given

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Map the condition, run the stack."""
        watch = streams.get("watch")
        if watch is not None:
            watch.enters(self, x, streams)
        condition = streams.get("condition")
        if condition is None:
            raise ShapeError(f"the layers need a condition, [batch, {self.map.in_features}]: pass condition=...")
        published: dict[str, Any] = {}
        y = call(self.stack, x, {**streams, "condition": F.silu(self.map(condition))}, "stack", published)
        if watch is not None:
            watch.leaves(self, y)
        return (y, published) if published else y
