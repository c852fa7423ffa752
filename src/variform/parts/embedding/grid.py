"""Layers over tokens that are the places of a grid: fewer places, other features (hierarchical vision models)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.ops.shapes import root
from variform.parts.kinds import Layer, Norm, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]
Margin = Annotated[int, Field(ge=0)]


class GridLayer(Layer):
    """Tokens are the places of a grid, row by row: `height` rows, or as many as columns where it is not given.

    Later parts see the new `dim`, `height` and `max_seq_len`. What is told of single tokens (positions, padding,
    documents, masks) has no meaning for what becomes of several, and is refused.
    """

    can: ClassVar[Can] = Can(False, False, False, False, True, False, False)
    reads: ClassVar[frozenset[str]] = frozenset({"positions", "valid", "segments", "mask"})
    height: int | None

    @classmethod
    @abstractmethod
    def side(cls, args: Facts, size: int) -> int:
        """What a side of `size` places becomes."""

    @classmethod
    @abstractmethod
    def features(cls, args: Facts) -> int:
        """The features that come out."""

    @abstractmethod
    def reduce(self, grid: Tensor) -> Tensor:
        """From [B, dim, H, W] to [B, features, H', W']."""

    @classmethod
    def check(cls, facts: Facts) -> Iterable[Problem]:
        """A place is left of the height at least."""
        height = facts["height"]
        if height is not None and cls.side(facts, height) < 1:
            yield Problem("height", "leaves no place", height)

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """The features, the height and the number of places of what comes out."""
        given: dict[str, int | None] = {"dim": cls.features(facts)}
        height, longest = facts.get("height"), facts.get("max_seq_len")
        if height is not None:
            given["height"] = cls.side(facts, height)
        if longest is not None:
            rows = math.isqrt(longest) if height is None else height
            if longest % rows == 0 and (height is not None or rows * rows == longest):
                given["max_seq_len"] = cls.side(facts, rows) * cls.side(facts, longest // rows)
        return given


def laid_out(x: Tensor, streams: Streams, height: int | None) -> Tensor:
    """The tokens as an image.

    Raises:
        ShapeError: so many tokens make no such grid, or something is told of single ones.
    """
    for name in ("positions", "valid", "segments", "mask"):
        if streams.get(name) is not None:
            raise ShapeError(f"a layer that joins the places of a grid takes no {name!r}")
    return to_grid(x, height)


def lined_up(y: Tensor) -> Tensor:
    """The places of an image as tokens."""
    return y.flatten(2).transpose(1, 2)


def to_grid(x: Tensor, height: int | None) -> Tensor:
    """Tokens [B, L, C] as an image [B, C, H, W].

    Args:
        x: the tokens.
        height: H; None for a square.

    Raises:
        ShapeError: so many tokens make no such grid.
    """
    batch, length, dim = x.shape
    rows = root(length) if height is None else height
    if not length or length % rows or (height is None and rows * rows != length):
        shape = "a square grid" if height is None else f"a grid of {height} rows"
        raise ShapeError(f"{length} tokens do not make {shape}")
    return x.transpose(1, 2).reshape(batch, dim, rows, length // rows)


def _reduced(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


@register("conv_patches")
class ConvPatches(GridLayer):
    """Tokens from overlapping or separate patches of a grid, by a convolution (Wang et al. 2021, arXiv:2102.12122).

    y = conv(x), with windows of kernel x kernel places every `stride` places.

    Shapes:
        x: [B, H W, dim] -> [B, H' W', out], H' = (H + 2 padding - kernel) // stride + 1, W' likewise

    Args:
        kernel: side of a window.
        stride: places from one window to the next; `kernel` by default.
        padding: places of zeros around the grid.
        out: features out; `dim` by default.
        bias: learn an offset.
        dim: features in.
        height: H; None for a square.
    """

    def __init__(
        self,
        kernel: Size,
        stride: Size | None = None,
        padding: Margin = 0,
        out: Size | None = None,
        bias: bool = True,
        dim: Size = INHERIT,
        height: Size | None = INHERIT,
    ) -> None:
        super().__init__()
        self.height = height
        self.conv = nn.Conv2d(dim, out or dim, kernel, stride or kernel, padding, bias=bias)

    @classmethod
    def side(cls, args: Facts, size: int) -> int:
        """By the rule of convolutions."""
        return _reduced(size, args["kernel"], args["stride"] or args["kernel"], args["padding"])

    @classmethod
    def features(cls, args: Facts) -> int:
        """`out`."""
        return int(args["out"] or args["dim"])

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Lay the tokens out, reduce the grid, and line its places up again."""
        return lined_up(self.reduce(laid_out(x, streams, self.height)))

    def reduce(self, grid: Tensor) -> Tensor:
        """Convolve."""
        conv = self.conv
        _need(grid, conv.kernel_size[0], int(conv.padding[0]))
        y: Tensor = conv(grid)
        return y


@register("pool_patches")
class PoolPatches(GridLayer):
    """Tokens from patches of a grid, by their mean or largest values and, for other features, a linear map.

    y = W pool(x), with windows of kernel x kernel places every `stride` places; places beyond the border do not count.

    Shapes:
        x: [B, H W, dim] -> [B, H' W', out], H' = (H + 2 padding - kernel) // stride + 1, W' likewise

    Args:
        kernel: side of a window.
        stride: places from one window to the next; `kernel` by default.
        padding: how far windows reach beyond the border; at most half of `kernel`.
        how: "mean" or "max".
        out: features out; `dim` by default, without a map.
        bias: learn an offset in the map.
        dim: features in.
        height: H; None for a square.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    def __init__(
        self,
        kernel: Size,
        stride: Size | None = None,
        padding: Margin = 0,
        how: Literal["mean", "max"] = "mean",
        out: Size | None = None,
        bias: bool = True,
        dim: Size = INHERIT,
        height: Size | None = INHERIT,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.height = height
        self.window = (kernel, stride or kernel, padding)
        self.how = how
        self.map = None if out is None or out == dim else Linear(dim, out, bias, std=init_std)

    @classmethod
    def check(cls, facts: Facts) -> Iterable[Problem]:
        """No window lies beyond the border."""
        yield from super().check(facts)
        if 2 * facts["padding"] > facts["kernel"]:
            limit = facts["kernel"] // 2
            yield Problem("padding", f"at most half of kernel = {facts['kernel']}", facts["padding"], f"up to {limit}")

    @classmethod
    def side(cls, args: Facts, size: int) -> int:
        """By the rule of convolutions."""
        return _reduced(size, args["kernel"], args["stride"] or args["kernel"], args["padding"])

    @classmethod
    def features(cls, args: Facts) -> int:
        """`out`."""
        return int(args["out"] or args["dim"])

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Lay the tokens out, reduce the grid, and line its places up again."""
        return lined_up(self.reduce(laid_out(x, streams, self.height)))

    def reduce(self, grid: Tensor) -> Tensor:
        """Pool and map."""
        _need(grid, self.window[0], self.window[2])
        if self.how == "max":
            y = F.max_pool2d(grid, *self.window)
        else:
            y = F.avg_pool2d(grid, *self.window, count_include_pad=False)
        return y if self.map is None else self.map(y.movedim(1, -1)).movedim(-1, 1)


@register("patch_merging")
class PatchMerging(GridLayer):
    """Swin's patch merging (Liu et al. 2021, arXiv:2103.14030): y = W norm([x_1; ...; x_n^2]) over n x n neighbours.

    Neighbours are joined column by column, as there; a grid whose sides n does not divide is filled up with zeros at
    the right and at the bottom.

    Shapes:
        x: [B, H W, dim] -> [B, ceil(H / n) ceil(W / n), out]

    Args:
        factor: n.
        out: features out; `n * dim` by default.
        norm: a norm on the joined features.
        bias: learn an offset.
        dim: features in.
        height: H; None for a square.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    def __init__(
        self,
        factor: Size = 2,
        out: Size | None = None,
        norm: Norm | None = use("layer_norm"),
        bias: bool = False,
        dim: Size = INHERIT,
        height: Size | None = INHERIT,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.height = height
        self.factor = factor
        self.norm = norm
        self.reduction = Linear(factor**2 * dim, out or factor * dim, bias, std=init_std)

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm sees all neighbours' features."""
        return {"dim": facts["factor"] ** 2 * facts["dim"]}

    @classmethod
    def side(cls, args: Facts, size: int) -> int:
        """Divided, rounded up."""
        return -(-size // int(args["factor"]))

    @classmethod
    def features(cls, args: Facts) -> int:
        """`out`."""
        return int(args["out"] or args["factor"] * args["dim"])

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Lay the tokens out, reduce the grid, and line its places up again."""
        return lined_up(self.reduce(laid_out(x, streams, self.height)))

    def reduce(self, grid: Tensor) -> Tensor:
        """Join neighbours, norm, map."""
        n = self.factor
        height, width = grid.shape[2:]
        if height % n or width % n:
            grid = F.pad(grid, (0, -width % n, 0, -height % n))
        batch, dim, height, width = grid.shape
        joined = grid.reshape(batch, dim, height // n, n, width // n, n).permute(0, 2, 4, 5, 3, 1).flatten(3)
        if self.norm is not None:
            joined = self.norm(joined)
        return self.reduction(joined).movedim(-1, 1)


def _need(grid: Tensor, kernel: int, padding: int) -> None:
    if min(grid.shape[2:]) + 2 * padding < kernel:
        raise ShapeError(f"windows of {kernel} x {kernel} do not fit into a grid of {list(grid.shape[2:])}")
