"""`plot_mask`: a picture of what attends to what, for masks, tensors and layouts alike."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from variform.errors import ConfigError, ShapeError
from variform.ops.masks import Mask
from variform.ops.masks.draw import draw, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_HEADS = 16
"""Heads that are drawn; further ones are left out, and the title says so."""

_SIDE = 3.2
"""Inches of one picture."""


def plot_mask(
    pattern: Any,
    length: int | None = None,
    *,
    keys: int | None = None,
    grid: Sequence[int] | None = None,
    at: Sequence[int] | None = None,
    block: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a mask, rows for queries and columns for keys; heads that differ are drawn one by one.

    Args:
        pattern: a mask; a tensor [Sq, Sk], [H, Sq, Sk] or [B, H, Sq, Sk] (its first row is drawn) of bools, zeros and
            ones, scores that are added, probabilities or weights; or anything with `make_layout(seq_len)`, such as
            the sparsity configurations of the xFormers dialect, or with `to_bool()`.
        length: how many positions, for masks and configurations.
        keys: how many keys, where they are not as many.
        grid: the positions are the pixels of an image (height, width): also draw what one pixel attends to.
        at: that pixel (row, column); the middle by default.
        block: positions that an entry of the tensor stands for along each side, for layouts.
        title: above the picture; what it is and its density by default.
        ax: axes to draw into, instead of a new figure: what the pixel attends to where a grid is given, else the mask.

    Raises:
        ConfigError: a length or grid is missing or does not fit; several pictures for one `ax`.
        ImportError: matplotlib is missing (the extra `plot`).
    """
    values, name, block = _values(pattern, length, keys, grid, block)
    heads = _different(values)
    panels: list[tuple[Tensor, str]] = []
    for number, head in enumerate(heads[:MOST_HEADS]):
        told = title if title is not None else _title(name, head, number if len(heads) > 1 else None)
        if grid is None or ax is None:
            panels.append((head, told))
        if grid is not None:
            panels.append((head, "" if ax is None else told))
    if ax is not None and len(panels) > 1:
        raise ConfigError(f"{len(panels)} pictures do not fit into one ax; leave it out, or pass one head")
    axes = [ax] if ax is not None else _new_axes(len(panels), pairs=grid is not None)
    for number, ((head, told), place) in enumerate(zip(panels, axes, strict=False)):
        if grid is not None and (ax is not None or number % 2):
            _draw_pixel(place, head, tuple(grid), at)
            told = told or place.get_title()
        else:
            image = draw(place, head, block)
            place.set(xlabel="key", ylabel="query")
            if image.get_cmap().name == "viridis":
                place.figure.colorbar(image, ax=place, shrink=0.8)
        place.set_title(told, fontsize="medium")
    figure: Figure = axes[0].figure  # type: ignore[assignment]
    if ax is None and len(heads) > MOST_HEADS:
        figure.suptitle(f"the first {MOST_HEADS} of {len(heads)} heads")
    return figure


def _values(
    pattern: Any, length: int | None, keys: int | None, grid: Sequence[int] | None, block: int | None
) -> tuple[Tensor, str, int]:
    """The numbers to draw, `[heads, Sq, Sk]`; what they are; positions of an entry."""
    count = math.prod(grid) if grid is not None and length is None else length
    if isinstance(pattern, Mask):
        if count is None:
            raise ConfigError("a mask has any length: pass the one to draw", path="length")
        dense = pattern.dense(torch.arange(count), torch.arange(count if keys is None else keys))
        values, name = dense.expand(*dense.shape[:-2], count, count if keys is None else keys), repr(pattern)
    elif hasattr(pattern, "make_layout"):
        if count is None:
            raise ConfigError("a layout is made for a length: pass the one to draw", path="length")
        values, name, block = pattern.make_layout(count), type(pattern).__name__, block or pattern.block_size
    else:
        values = pattern.to_bool() if hasattr(pattern, "to_bool") else torch.as_tensor(pattern)
        values, name = values.to_dense() if values.layout != torch.strided else values, ""
    if values.dim() not in (2, 3, 4):
        raise ShapeError(f"a mask [Sq, Sk], [H, Sq, Sk] or [B, H, Sq, Sk] expected, got {list(values.shape)}")
    values = values[0] if values.dim() == 4 else values
    block = block or 1
    sides = {size * block for size in values.shape[-2:]}
    if grid is not None and sides != {math.prod(grid)}:
        raise ConfigError(f"a grid of {' x '.join(map(str, grid))} has not as many pixels as the mask has positions")
    return values if values.dim() == 3 else values.unsqueeze(0), name, block


def _different(values: Tensor) -> list[Tensor]:
    """One mask for all heads where they agree."""
    heads = list(values)
    return heads[:1] if all(torch.equal(head, heads[0]) for head in heads) else heads


def _title(name: str, head: Tensor, number: int | None) -> str:
    told = ["\n".join(textwrap.wrap(name, 38, max_lines=2, placeholder=" ..."))] if name else []
    told += [f"head {number}"] if number is not None else []
    if not head.is_floating_point() or bool(((head == 0) | (head == 1)).all()):
        told.append(f"density {float((head != 0).float().mean()):.3f}")
    return "\n".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


def _new_axes(count: int, pairs: bool) -> list[Any]:
    columns = min(count, 4)
    rows = -(-count // columns)
    size = (_SIDE * columns + 0.6, _SIDE * rows + 0.5)
    _, axes = pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for spare in axes.flat[count:]:
        spare.set_axis_off()
    return list(axes.flat)


def _draw_pixel(axes: Axes, head: Tensor, grid: tuple[int, ...], at: Sequence[int] | None) -> None:
    """The keys of one query as an image."""
    if len(grid) != 2:
        raise ConfigError(f"a picture of pixels has a height and a width, not {list(grid)}", path="grid")
    row, column = (size // 2 for size in grid) if at is None else at
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise ConfigError(f"the pixel ({row}, {column}) lies outside of {grid[0]} x {grid[1]}", path="at")
    draw(axes, head[row * grid[1] + column].view(grid))
    axes.plot([column], [row], marker="s", color="#d9822b", markersize=5, linestyle="none")
    axes.set(xlabel="column", ylabel="row", title=f"what pixel ({row}, {column}) sees")
