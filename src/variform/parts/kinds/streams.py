"""Parts over streams: layers, mixers, feedforwards, stacks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from variform.core.dims import Shape
from variform.core.part import Facts, Part
from variform.errors import ShapeError

Streams = Mapping[str, Any]
"""Named side inputs, read-only inside a part: `positions, valid, segments, mask, bias, context, ...`.

Where a caller asks for losses, `losses` holds those so far as (name, scalar) pairs; a part with losses of its own
publishes them behind these.
"""


Output = Tensor | tuple[Tensor, dict[str, Any]]
"""What a part over streams returns: `x`, or `(x, published)` when it publishes streams or keeps state."""


State = dict[str, Any]
"""A tree of tensors that decoding carries from call to call."""


class StreamPart(Part):
    """Common contract of layers, mixers and feedforwards: `forward(x, streams) -> x` or `(x, published)`.

    Shapes:
        x: [B, L, dim]

    Class attributes:
        takes_views: whether keys and values are read off the streams `key_input` and `value_input`, [B, L, dim] each,
            where a sublayer hands them over; a part with a `body` leaves that to its body, and does nothing to `x`.
        passes_masks: whether a mask of pairs is for its body alone, and what it moves itself goes by places.

    Attributes:
        remembers: whether it is run on the tokens of earlier segments too, where a model is given memories.
    """

    follows: ClassVar[frozenset[str]] = frozenset({"dim"})
    takes_views: ClassVar[bool] = False
    passes_masks: ClassVar[bool] = False
    remembers: bool = False

    @abstractmethod
    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Transform `x`; publish by returning `(x, {"name": tensor})`."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, streams: Streams) -> Output: ...

    @classmethod
    def in_streams(cls, args: Facts) -> dict[str, Shape]:
        """The shapes of streams that it reads, where it declares them: `B` and `L` are those of its input."""
        return {}

    @classmethod
    def out_streams(cls, args: Facts, x: Shape, streams: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shapes of the streams that it publishes itself, so that a step of a program can name them.

        Args:
            args: the resolved fields.
            x: the shape of its input.
            streams: the shapes of the streams that it is given.

        Raises:
            ShapeError: it publishes, and does not say of what shape.
        """
        told = cls.publishes(args)
        if told:
            raise ShapeError(f"{cls.kind} {cls.name!r} publishes {', '.join(told)} and defines no out_streams(...)")
        return {}

    @classmethod
    def features_out(cls, args: Facts) -> int | None:
        """How many features go out, where the arguments say so; by default what the field `dim_out` holds."""
        return args.get("dim_out")

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Empty decode state for `batch` rows of at most `max_len` tokens: by default the children's, by name."""
        return {
            name: child.init_state(batch, max_len, streams)
            for name, child in self.named_children()
            if isinstance(child, StreamPart) and holds_state(child)
        }


class Layer(StreamPart):
    """A residual step or a group of them: what a stack is a list of.

    Class attributes:
        takes_many: whether `x` may be several residual streams a token, [B, L, S, dim], each treated alike.
    """

    kind: ClassVar[str] = "layer"
    takes_many: ClassVar[bool] = False


class Mixer(StreamPart):
    """Mixes information over the sequence; works on whole features, heads are its own business."""

    kind: ClassVar[str] = "mixer"


class FeedForward(StreamPart):
    """Transforms each token on its own."""

    kind: ClassVar[str] = "feedforward"


class Stack(StreamPart):
    """An ordered list of layers with a way to execute them."""

    kind: ClassVar[str] = "stack"


def holds_state(module: Any) -> bool:
    """Whether a module, or anything below it, keeps decode state."""
    return any(isinstance(child, Part) and child.stateful for child in module.modules())


def positions_of(streams: Streams, length: int, device: Any) -> Tensor:
    """The positions of the current tokens: the `positions` stream, or 0..length-1 where it is None."""
    positions = streams.get("positions")
    return torch.arange(length, device=device) if positions is None else positions
