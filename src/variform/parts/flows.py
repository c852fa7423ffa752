"""What is known of a named tensor of a program while tokens come in chunks: which axes run over them, what is masked.

Sizes are those of the whole sequence: the axes whose size is the name of the tokens' length run over tokens. A tensor
without such an axis stays the same from call to call (it is *held*); one whose last two axes run over tokens has a
number for each *pair* of a query and a key, which may also be a template that all chunks take their part of.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from variform.core.dims import Dim, Shape, shape_text
from variform.errors import ShapeError

MASKED = -32752.0
"""The weakest mask: half the lowest number of half precision, which the softmax of scores still makes 0."""

FROM_END = "positions counted from the end of the sequence"


@dataclass(frozen=True)
class Flow:
    """A named tensor of a program that decodes.

    Args:
        shape: its sizes, for the whole sequence.
        length: the name of the tokens' length.
        mask: of pairs: entries right of the diagonal are at most about this; 0 says nothing.
        zeroed: of pairs: entries right of the diagonal are 0.
        turned: features rotated and rows of the table, where positions were counted from the sequence's end.
    """

    shape: Shape
    length: str
    mask: float = 0.0
    zeroed: bool = False
    turned: tuple[int, int] | None = None

    @property
    def along(self) -> tuple[int, ...]:
        """The axes that run over tokens, counted from the end."""
        size, count = Dim.symbol(self.length), len(self.shape)
        return tuple(axis - count for axis in range(count) if self.shape[axis] == size)

    @property
    def held(self) -> bool:
        """Whether it stays the same from call to call."""
        return not any(isinstance(size, Dim) and self.length in size.symbols() for size in self.shape)

    @property
    def rows(self) -> bool:
        """Whether its last axis but one runs over tokens, and no other."""
        return self.along == (-2,)

    @property
    def pairs(self) -> bool:
        """Whether it has a number for each pair of tokens."""
        return self.along == (-2, -1)

    def sizes(self, *axes: int) -> tuple[int, ...]:
        """The sizes of these axes, as numbers.

        Raises:
            ShapeError: one is not known.
        """
        found = tuple(size for size in (self.shape[axis] for axis in axes) if isinstance(size, int))
        if len(found) < len(axes):
            raise ShapeError(f"{shape_text(self.shape)}: what is kept for decoding needs known sizes at {axes}")
        return found


def each_token(op: Any, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
    """The results of a step that treats each token on its own, or each pair where an input is pairs.

    Args:
        op: the part.
        inputs: at least one of them is not held.
        outputs: the shapes of the results.

    Raises:
        ShapeError: tokens are not where they can be told apart, before the step or after it.
    """
    name, pairs = op.name, any(flow.pairs for flow in inputs)
    if pairs and not getattr(op, "pairwise", False):
        raise ShapeError(f"{name!r} reads scores, and does not treat each one on its own")
    for flow in inputs:
        if flow.turned is not None:
            raise ShapeError(
                f"{name!r} reads features that were rotated by {FROM_END}; only scores of queries and keys that were "
                "both rotated alike do not depend on where the end is"
            )
        if not (flow.held or flow.pairs or flow.rows or (len(flow.along) == 1 and not pairs)):
            raise ShapeError(f"{name!r} reads {shape_text(flow.shape)}, of which a chunk has only a part of the tokens")
    found = tuple(Flow(shape, inputs[0].length) for shape in outputs)
    for flow in found:
        if len(flow.along) != 1 + pairs or any(_depends(size, flow.length) for size in flow.shape):
            raise ShapeError(
                f"{name!r} makes {shape_text(flow.shape)}: its result is not token by token, so it changes with each "
                "chunk"
            )
    return found


def unchanged(inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
    """The results of a step that gives its inputs back as they are."""
    return tuple(replace(flow, shape=shape) for flow, shape in zip(inputs, outputs, strict=True))


def merged(op: Any, how: str, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
    """The result of joining two tensors entry by entry: masks stay where one is added, zeros where one multiplies."""
    (found,) = each_token(op, inputs, outputs)
    if not found.pairs:
        return (found,)
    a, b = inputs
    if how == "multiply":
        return (replace(found, zeroed=a.zeroed or b.zeroed),)
    both = a.zeroed and b.zeroed
    if how == "add":
        return (replace(found, mask=min(a.mask, b.mask), zeroed=both),)
    return (replace(found, mask=0.0 if b.mask else a.mask, zeroed=both),)


def _depends(size: Any, length: str) -> bool:
    """Whether a size is an expression of the tokens' length, and not the length itself."""
    return isinstance(size, Dim) and size != Dim.symbol(length) and length in size.symbols()
