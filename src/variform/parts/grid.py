"""Sequences that stand for a grid of tokens, row by row, and what such parts do not honour."""

from __future__ import annotations

import math

from torch import Tensor

from variform.core.part import Part
from variform.errors import ShapeError
from variform.ops.shapes import root
from variform.parts.kinds import Streams

Grid = tuple[int, int]
"""Rows and columns of tokens."""


def grid_of(length: int, grid: Grid | None, part: Part) -> Grid:
    """The rows and columns of a sequence: those given, or those of a square.

    Args:
        length: tokens.
        grid: rows and columns; None for a square.
        part: whose sequence it is, for the message.

    Raises:
        ShapeError: the tokens do not fill the grid; it names the nearest lengths that do.
    """
    if grid is not None:
        if grid[0] * grid[1] != length:
            raise ShapeError(
                f"the {part.kind} {part.name!r} has a grid of {grid[0]} x {grid[1]} = {grid[0] * grid[1]} tokens, "
                f"and was given {length}"
            )
        return grid
    side = root(length)
    if side * side != length or not length:
        near = [n * n for n in (side, side + 1) if n]
        raise ShapeError(
            f"the {part.kind} {part.name!r} needs a square number of tokens, and was given {length}; the nearest are "
            f"{' and '.join(map(str, near))} (a class token counts), or describe another grid: grid=(rows, columns)"
        )
    return side, side


def near_grid(length: int, grid: Grid | None) -> int:
    """The length near `length` that fills the grid, or a square."""
    return grid[0] * grid[1] if grid is not None else max(1, round(math.sqrt(length))) ** 2


def to_grid(x: Tensor, grid: Grid) -> Tensor:
    """[B, H * W, C] to [B, C, H, W]."""
    return x.reshape(x.shape[0], *grid, x.shape[2]).permute(0, 3, 1, 2)


def from_grid(x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H * W, C]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def refuse_unable(part: Part, streams: Streams) -> None:
    """Refuse a stream that a part which mixes tokens itself would ignore.

    Raises:
        ShapeError: naming the stream.
    """
    can = part.can
    for name, able in (("valid", can.key_padding), ("segments", can.packed), ("mask", can.attention_mask)):
        if not able and streams.get(name) is not None:
            raise ShapeError(
                f"the {part.kind} {part.name!r} cannot honour the stream {name!r}; leave it out, or take one that can "
                f"(`variform parts --kind {part.kind}` lists them)"
            )
