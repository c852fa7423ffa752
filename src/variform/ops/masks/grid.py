"""Masks over positions that count the points of a grid, row by row: images, volumes, lines.

Positions beyond the grid are neither attended nor attending.
"""

from __future__ import annotations

import functools
import math
import operator
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from variform.errors import ConfigError
from variform.ops.masks.base import Mask
from variform.ops.masks.view import View

__all__ = ["Axial", "Dilated", "Near", "ShiftedWindows"]


@dataclass(frozen=True, eq=False, repr=False)
class _Grid(Mask):
    """A rule on the coordinates of two points of a grid.

    Args:
        sizes: points along each axis, the last axis running fastest: (height, width) of an image.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = tuple(int(size) for size in self.sizes)
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"{type(self).__name__}(sizes={self.sizes!r}): one size >= 1 for each axis is needed")
        object.__setattr__(self, "sizes", sizes)

    @abstractmethod
    def _meets(self, q: list[Tensor], k: list[Tensor]) -> Tensor:
        """The rule, for coordinates by axis."""

    def _visit(self, view: View) -> Tensor:
        count = math.prod(self.sizes)
        known = (view.q_pos < count) & (view.k_pos < count)
        return self._meets(self._coordinates(view.q_pos), self._coordinates(view.k_pos)) & known

    def _coordinates(self, positions: Tensor) -> list[Tensor]:
        strides = [math.prod(self.sizes[axis + 1 :]) for axis in range(len(self.sizes))]
        return [positions // stride % size for stride, size in zip(strides, self.sizes, strict=True)]


def _all(tests: Sequence[Tensor]) -> Tensor:
    return functools.reduce(operator.and_, tests)


@dataclass(frozen=True, eq=False, repr=False)
class Near(_Grid):
    """Points at a p-distance below `distance`: (sum_a |w_a (q_a - k_a)|^p)^(1/p) < distance.

    Exact where the p-th powers are whole numbers below 2^24.

    Args:
        sizes: points along each axis.
        distance: the first distance that is too far.
        p: 2 is the distance as the crow flies, 1 along the axes, infinity the longest axis; 0 counts the axes on which
            the points differ.
        weights: a factor for each axis; 0 leaves an axis out. All 1 by default.
    """

    distance: float = 1.0
    p: float = 2.0
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        if self.weights is not None and len(self.weights) != len(self.sizes):
            raise ConfigError(f"Near: {len(self.weights)} weights for {len(self.sizes)} axes")
        if self.p < 0:
            raise ConfigError(f"Near(p={self.p}): a distance has p >= 0")

    def _meets(self, q: list[Tensor], k: list[Tensor]) -> Tensor:
        weights = self.weights or (1.0,) * len(q)
        apart = [(a - b).abs().to(torch.float32) * abs(weight) for a, b, weight in zip(q, k, weights, strict=True)]
        if math.isinf(self.p):
            return _all([a < self.distance for a in apart])
        if self.p == 0:
            return functools.reduce(operator.add, [(a != 0).to(torch.float32) for a in apart]) < self.distance
        far: Tensor = functools.reduce(operator.add, [a * a if self.p == 2 else a.pow(self.p) for a in apart])
        return far < float(max(self.distance, 0.0) ** self.p)


@dataclass(frozen=True, eq=False, repr=False)
class Axial(_Grid):
    """Points that differ on one axis at most: rows and columns (Ho et al. 2019, arXiv:1912.12180).

    Args:
        sizes: points along each axis.
    """

    def _meets(self, q: list[Tensor], k: list[Tensor]) -> Tensor:
        differ = functools.reduce(operator.add, [(a != b).to(torch.int32) for a, b in zip(q, k, strict=True)])
        return differ < 2


@dataclass(frozen=True, eq=False, repr=False)
class ShiftedWindows(_Grid):
    """Points of one window of a regular tiling (Swin, Liu et al. 2021, arXiv:2103.14030).

    With a shift the tiling starts `shift` points in; what is cut off at the border forms smaller windows of its own,
    which is what Swin's cyclic shift with its mask comes to.

    Args:
        sizes: points along each axis; multiples of the window.
        window: points of a window along each axis.
        shift: by how many points the tiling is moved, below `window`.
    """

    window: int = 1
    shift: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or any(size % self.window for size in self.sizes):
            raise ConfigError(f"ShiftedWindows: windows of {self.window} do not tile {list(self.sizes)}")
        if not 0 <= self.shift < self.window:
            raise ConfigError(f"ShiftedWindows(shift={self.shift}): must lie in 0 ... {self.window - 1}")

    def _meets(self, q: list[Tensor], k: list[Tensor]) -> Tensor:
        lead = -self.shift % self.window
        return _all([(a + lead) // self.window == (b + lead) // self.window for a, b in zip(q, k, strict=True)])


@dataclass(frozen=True, eq=False, repr=False)
class Dilated(_Grid):
    """Points whose distance along each axis is a multiple of `step`: each sees a coarser copy of the grid.

    Args:
        sizes: points along each axis.
        step: every how many points one is seen.
    """

    step: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step < 1:
            raise ConfigError(f"Dilated(step={self.step}): must be >= 1")

    def _meets(self, q: list[Tensor], k: list[Tensor]) -> Tensor:
        return _all([a % self.step == b % self.step for a, b in zip(q, k, strict=True)])
