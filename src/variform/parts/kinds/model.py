"""Whole models, and what stands at their two ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from variform.core.dims import Shape
from variform.core.part import Facts, Part
from variform.errors import ShapeError
from variform.parts.kinds.streams import Output, State, Streams


class Embedding(Part):
    """Turns a model's raw input into [B, L, dim]: `forward(inputs, streams) -> x` or `(x, published)`."""

    kind: ClassVar[str] = "embedding"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Embed; a part that changes the length republishes `positions`, `valid` and `segments`."""

    @classmethod
    def takes(cls, args: Facts) -> str:
        """What its input holds, of `CONTENTS`."""
        return "ids"

    @classmethod
    def in_sizes(cls, args: Facts) -> tuple[int | str, ...]:
        """The sizes of its input: numbers, `B` rows and `L` tokens; by default those of ids."""
        return ("B", "L")

    @classmethod
    def out_shape(cls, args: Facts, inputs: Shape, streams: Mapping[str, Shape]) -> Shape:
        """The shape of the result, as a step of a program; by default that of ids [B, L] with `dim` features.

        Args:
            args: the resolved fields.
            inputs: the shape of the input.
            streams: the shapes of the streams that it is given.

        Raises:
            ShapeError: the input does not fit.
        """
        if len(inputs) != 2 or args.get("dim") is None:
            raise ShapeError(f"embedding {cls.name!r} takes ids of [B, L], or defines out_shape(...)")
        return (*inputs, args["dim"])

    @classmethod
    def out_streams(cls, args: Facts, x: Shape, streams: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shapes of the streams that it publishes itself, given those it reads."""
        return {}

    @abstractmethod
    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """An input of the sizes asked for; `length` is ignored where the input has no such size."""
        raise NotImplementedError(f"{type(self).__name__} does not define example_inputs(batch, length)")

    if TYPE_CHECKING:

        def __call__(self, inputs: Tensor, streams: Streams) -> Output: ...


class Head(Part):
    """Reads the answer off the last hidden states: `forward(x, streams) -> output`."""

    kind: ClassVar[str] = "head"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """From [B, L, dim] to the model's output."""

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """The shape of the output for an input of shape `x`.

        Raises:
            ShapeError: by default: a head that is a step of a program has to say it.
        """
        raise ShapeError(f"head {cls.name!r} does not say the shape of its output: define out_shape(args, x)")

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, streams: Streams) -> Tensor: ...


class Model(Part):
    """A whole model: what `vf.build` of a preset returns and `vf.generate` takes."""

    kind: ClassVar[str] = "model"

    @abstractmethod
    def init_state(self, batch: int, max_len: int | None = None, *, bucket: int = 0, **streams: Any) -> State:
        """Empty decode state for `batch` rows of at most `max_len` tokens."""

    @abstractmethod
    def example_inputs(self, batch: int, length: int | None = None) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments of `forward`, of the sizes asked for (cost, checks, export).

        Args:
            batch: rows.
            length: tokens a row; the longest the model takes by default. Ignored where the input has no such size.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define example_inputs(batch, length)")

    def example_state(self, batch: int, max_len: int | None = None) -> State:
        """Empty decode state, with example side inputs where it has to read them."""
        given = self.example_inputs(batch, max_len)[1]
        streams: dict[str, Any] = {name: x for name, x in given.items() if name != "condition"}  # told in each call
        return self.init_state(batch, max_len, **streams)
