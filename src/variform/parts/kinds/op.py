"""Steps of programs."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from variform.core.dims import Shape
from variform.core.part import Facts, Part
from variform.parts.flows import Flow, each_token
from variform.parts.kinds.streams import State, Streams

CONTENTS = ("ids", "features", "heads", "scores", "mask")
"""What a named tensor of a program can hold: integer ids, features of tokens, features of heads, attention scores or
weights, offsets and masks of scores. Sizes alone do not tell them apart."""


class Op(Part):
    """A step of a program: some tensors in, one or several out, no side inputs.

    Sizes are inferred before anything is built: `shapes` maps the shapes of the inputs, known or named sizes, to
    those of the outputs. `facts` of a step: `dim` is the last size of its first input, where that is a number.

    Class attributes:
        arity: how many tensors it takes; None for one or more.
        ids: the places of inputs that are integer ids.
        spare: the places of inputs that may be larger than needed, and of batch size 1.
        lone: the places of inputs that may be of batch size 1 where another input has the whole batch.
        ordered: whether the result depends on where in the sequence a row stands.
        accepts: what each input may hold, one set of `CONTENTS` a place; anything but ids for places left out.
        pairwise: whether scores may come in chunks of queries, with the keys so far: each is treated on its own.

    An op that does not treat each token on its own either cannot decode (`can.decode`), or is `stateful`: it defines
    `flow`, `init_state` and `step`.
    """

    kind: ClassVar[str] = "op"
    pairwise: ClassVar[bool] = False
    arity: ClassVar[int | None] = 1
    ids: ClassVar[tuple[int, ...]] = ()
    spare: ClassVar[tuple[int, ...]] = ()
    lone: ClassVar[tuple[int, ...]] = ()
    ordered: ClassVar[bool] = False
    accepts: ClassVar[tuple[frozenset[str], ...]] = ()

    @classmethod
    @abstractmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The shapes of the outputs.

        Raises:
            ShapeError: the inputs do not fit the op, or one another.
        """

    @classmethod
    def sizes(cls, args: Facts, inputs: tuple[Shape, ...]) -> Facts:
        """What the op's own fields may inherit from the shapes of its inputs, beside `dim`.

        Args:
            args: the fields that are given, not checked yet.
            inputs: the shapes.
        """
        return {}

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """What the outputs hold, one of `CONTENTS` each, "" where that is open; by default what the first input does.

        Args:
            args: the fields.
            contents: what the inputs hold.
        """
        return contents[:1]

    @classmethod
    def constants(cls, args: Facts) -> dict[str, Shape]:
        """Fixed tensors that the op reads beside its inputs, by name, to be shown in tables."""
        return {}

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the outputs."""

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """What is known of the outputs where tokens come in chunks; by default those of a function of each token.

        Args:
            inputs: what is known of the inputs.
            outputs: the shapes of the outputs, for the whole sequence.

        Raises:
            ShapeError: these inputs cannot be read in chunks.
        """
        return each_token(self, inputs, outputs)

    def init_state(self, batch: int, max_len: int, like: Tensor, inputs: tuple[Flow, ...]) -> State | None:
        """Empty decode state; None where `forward` serves chunks as well, which is the default.

        Args:
            batch: rows.
            max_len: the most tokens a row will hold.
            like: gives dtype and device.
            inputs: what is known of the inputs.

        Raises:
            ShapeError: the op does not reach as far as `max_len`.
        """
        return None

    def step(self, inputs: tuple[Tensor, ...], state: State, streams: Streams) -> tuple[tuple[Tensor, ...], State]:
        """Compute the outputs for a chunk of tokens, and the new state.

        Args:
            inputs: of the chunk.
            state: what the call before left here, or `init_state`.
            streams: `positions` of the chunk, and `cache`: where its tokens go and what they join (`stack.state`).
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no decode state")
