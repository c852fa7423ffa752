"""Drawing what attends to what with matplotlib, which is imported when something is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["draw", "pyplot"]

_COLOURS = ("#f5f3ee", "#1d4e79")
"""Of pairs that are not attended, and of those that are."""


def pyplot() -> Any:
    """matplotlib's `pyplot`.

    Errors: `ImportError` that names the extra.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plotting a mask needs matplotlib: pip install 'variform[plot]'") from error
    return pyplot


def draw(axes: Axes, values: Tensor, block: int = 1) -> AxesImage:
    """Draw one picture: bool and 0/1 as two colours, other numbers as shades; NaN and -inf stay blank.

    Shapes: values `[rows, columns]`.

    Args:
        block: how many positions an entry stands for along each side, for the numbers at the edges.
    """
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = values.shape
    shown = values.detach().to("cpu", torch.float32)
    shown = torch.where(shown.isneginf(), torch.nan, shown)
    finite = shown[shown.isfinite()]
    pairs = bool(((finite == 0) | (finite == 1)).all())
    if pairs and values.is_floating_point() and not bool((finite == 1).any()) and bool(shown.isnan().any()):
        shown = (~shown.isnan()).float()  # zeros and -inf: what is added to scores
    dark = LinearSegmentedColormap.from_list("attended", _COLOURS)
    colours = (dark if pairs else pyplot().get_cmap("viridis")).with_extremes(bad=_COLOURS[0])
    limits: dict[str, Any] = {"vmin": 0, "vmax": 1} if pairs else {}
    extent = (-0.5, columns * block - 0.5, rows * block - 0.5, -0.5)
    return axes.imshow(shown.numpy(), cmap=colours, extent=extent, **limits)
