"""Rotary position embedding as a step of a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.dims import Shape, shape_text
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.ops.rotary import apply_rotary, rotary_rows, rotary_tables, rotate
from variform.parts.flows import Flow, each_token
from variform.parts.kinds import Op, State, Streams
from variform.parts.op.common import STEPWISE

Size = Annotated[int, Field(gt=0)]


@register("rotary")
class Rotary(Op):
    """Rotates the first features of each head by the row's position (Su et al. 2021, arXiv:2104.09864).

    Rows count backwards from the end of the table: the last row of every tensor stands at `max_len - 1`, so that a
    few queries meet many keys with their ends aligned. Scores depend on differences of positions alone.

    Shapes:
        x: [..., L, D], L <= max_len, D >= features -> the same

    Args:
        features: how many are rotated; even.
        max_len: rows of the table.
    """

    ordered: ClassVar[bool] = True
    accepts: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"features", "heads"}),)
    stateful: ClassVar[bool] = True
    can: ClassVar[Can] = STEPWISE
    cos: Tensor
    sin: Tensor

    def __init__(self, features: Size, max_len: Size = 2048) -> None:
        super().__init__()
        self.features = features
        self.max_len = max_len
        self.register_buffer("cos", torch.empty(max_len, features // 2), persistent=False)
        self.register_buffer("sin", torch.empty(max_len, features // 2), persistent=False)
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Features rotate in pairs."""
        features = facts["features"]
        if features % 2:
            hint = f"nearest: {features - 1} or {features + 1}" if features > 1 else "nearest: 2"
            return [Problem("features", "features rotate in pairs: an even number is needed", features, hint)]
        return []

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The shape stays; what is rotated must be there."""
        shape = inputs[0]
        if len(shape) < 2:
            raise ShapeError(f"a rotation takes [..., L, D], not {shape_text(shape)}")
        length, dim = shape[-2:]
        if not isinstance(dim, int) or args["features"] > dim:
            raise ShapeError(f"{args['features']} features are to be rotated, and there are {dim}")
        if isinstance(length, int) and length > args["max_len"]:
            raise ShapeError(f"the table has {args['max_len']} rows, and the sequence {length}; raise max_len")
        return inputs

    @classmethod
    def constants(cls, args: Facts) -> dict[str, Shape]:
        """The table of angles."""
        return {f"rope_{args['features']}": (args["max_len"], args["features"])}

    def reset_parameters(self) -> None:
        """Fill the table."""
        cos, sin = rotary_tables(self.max_len, self.features, dtype=torch.float64)
        self.cos.copy_(cos)
        self.sin.copy_(sin)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # A table that was rounded to float32 once is not a float64 table: fill it anew after each move or cast.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reset_parameters()
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        """Rotate."""
        (x,) = inputs
        length = x.shape[-2]
        if length > self.max_len:
            raise ShapeError(f"the rotation has a table of {self.max_len} rows, and the sequence has {length}")
        return apply_rotary(x, self.cos[-length:], self.sin[-length:])

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """Rows of tokens become rows that are rotated."""
        if not inputs[0].rows:
            raise ShapeError(f"a rotation needs the tokens' axis last but one, and reads {shape_text(inputs[0].shape)}")
        (found,) = each_token(self, inputs, outputs)
        return (replace(found, turned=(self.features, self.max_len)),)

    def init_state(self, batch: int, max_len: int, like: Tensor, inputs: tuple[Flow, ...]) -> State | None:
        """Nothing but the positions of the call is needed; the table must reach."""
        if max_len > self.max_len:
            raise ShapeError(f"the rotation has a table of {self.max_len} rows, and max_len is {max_len}")
        return {}

    def step(self, inputs: tuple[Tensor, ...], state: State, streams: Streams) -> tuple[tuple[Tensor, ...], State]:
        """Rotate by the positions, counted from the start: nobody knows yet where the end is."""
        (x,) = inputs
        at = streams["positions"]
        self._reach(at, streams["cache"]["moved"])
        rows = rotary_rows(self.cos, self.sin, x.shape[-2], at)
        if at.dim() == 2 and x.dim() == 3:
            rows = (rows[0].squeeze(1), rows[1].squeeze(1))  # no heads
        return (rotate(x, rows),), state

    def _reach(self, positions: Tensor, moved: bool) -> None:
        # Values are looked at where that costs no synchronisation, and only where they may be other than counted.
        if moved and positions.device.type == "cpu" and not torch.compiler.is_compiling():
            highest = int(positions.max())
            if highest >= self.max_len:
                raise ShapeError(f"the rotation has a table of {self.max_len} rows, and a position is {highest}")
