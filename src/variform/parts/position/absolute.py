"""Positions that are added to the embeddings: learned and sinusoidal."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.parts.kinds import Position

Size = Annotated[int, Field(gt=0)]


@register("learned")
class LearnedPosition(Position):
    """A table of learned vectors, one a position (Gehring et al. 2017, arXiv:1705.03122).

    With `unit`, vectors have length 1 before the factor (FixNorm, Nguyen and Salazar 2019, arXiv:1910.05895).

    Shapes:
        positions: [L] or [B, L] -> [L, dim] or [B, L, dim]

    Args:
        dim: features.
        max_seq_len: number of positions; beyond it is an error.
        std: standard deviation of the initial table.
        scale: factor on the vectors.
        unit: divide each vector by its length.
    """

    def __init__(
        self,
        dim: Size = INHERIT,
        max_seq_len: Size = INHERIT,
        std: Annotated[float, Field(ge=0)] = 0.02,
        scale: float = 1.0,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.std = std
        self.scale = scale
        self.max_seq_len = max_seq_len
        self.weight = nn.Parameter(torch.empty(max_seq_len, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal vectors."""
        nn.init.normal_(self.weight, 0.0, self.std)

    def forward(self, positions: Tensor | None, length: int, like: Tensor) -> Tensor:
        """Look the positions up."""
        if positions is not None:
            found = look_up(positions, self.weight)
        elif length <= self.max_seq_len:
            found = self.weight[:length]
        else:
            raise ShapeError(f"{length} tokens need as many positions, and the table holds {self.max_seq_len}")
        if self.unit:
            found = F.normalize(found, dim=-1)
        return (found if self.scale == 1.0 else found * self.scale).to(like.dtype)


@register("sinusoidal")
class SinusoidalPosition(Position):
    """Fixed sines and cosines of geometric wavelengths (Vaswani et al. 2017, arXiv:1706.03762).

    code[p, 2i] = sin(p / base^(2i/dim)), code[p, 2i+1] = cos(p / base^(2i/dim)), times `scale`.

    Shapes:
        positions: [L] or [B, L] -> [L, dim] or [B, L, dim]

    Args:
        dim: features; even.
        base: the longest wavelength is 2 pi base.
        scale: factor on the code.
    """

    def __init__(
        self,
        dim: Size = INHERIT,
        base: Annotated[float, Field(gt=0)] = 10000.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.base = base
        self.scale = scale

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Sines and cosines come in pairs."""
        return pair_problems(facts)

    def forward(self, positions: Tensor | None, length: int, like: Tensor) -> Tensor:
        """Compute the codes in float32 (float64 for float64 models), cast to the dtype of `like`."""
        angles = position_angles(positions, length, self.dim, self.base, like)
        code = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
        return (code * self.scale).to(like.dtype)


@register("scaled_sinusoidal")
class ScaledSinusoidalPosition(Position):
    """Fixed sines and cosines times a learned factor: code[p] = s [sin(p w); cos(p w)], w_i = base^(-2i/dim).

    The codes of Vaswani et al. 2017 (arXiv:1706.03762), all sines first; the factor s begins at dim^-0.5.

    Shapes:
        positions: [L] or [B, L] -> [L, dim] or [B, L, dim]

    Args:
        dim: features; even.
        base: the longest wavelength is 2 pi base.
    """

    def __init__(self, dim: Size = INHERIT, base: Annotated[float, Field(gt=0)] = 10000.0) -> None:
        super().__init__()
        self.dim = dim
        self.base = base
        self.factor = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Codes of length about 1."""
        nn.init.constant_(self.factor, self.dim**-0.5)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Sines and cosines come in pairs."""
        return pair_problems(facts)

    def forward(self, positions: Tensor | None, length: int, like: Tensor) -> Tensor:
        """Compute the codes in float32 (float64 for float64 models), cast to the dtype of `like`."""
        angles = position_angles(positions, length, self.dim, self.base, like)
        code = torch.cat((angles.sin(), angles.cos()), dim=-1)
        return (code * self.factor.to(code.dtype)).to(like.dtype)


def pair_problems(facts: Facts) -> list[Problem]:
    """Sines and cosines come in pairs, so `dim` must be even."""
    dim = facts["dim"]
    if dim % 2:
        message = "sines and cosines come in pairs: dim must be even"
        return [Problem("dim", message, dim, f"nearest: {dim - 1} or {dim + 1}")]
    return []


def position_angles(positions: Tensor | None, length: int, dim: int, base: float, like: Tensor) -> Tensor:
    """The angles p base^(-2i/dim) in float32, in float64 for `like` of float64: [L] or [B, L] -> [.., dim / 2]."""
    work = torch.float64 if like.dtype == torch.float64 else torch.float32
    if positions is None:
        positions = torch.arange(length, device=like.device)
    steps = torch.arange(0, dim, 2, device=like.device, dtype=work) / dim
    return positions.to(work).unsqueeze(-1) * base**-steps


def look_up(positions: Tensor, table: Tensor) -> Tensor:
    """Rows of a table by position; an index below zero does not count from the end.

    Shapes:
        positions: [...] integers; table: [positions, dim] -> [..., dim]

    Raises:
        ShapeError: a position that is not in the table.
    """
    try:
        return F.embedding(positions, table)
    except IndexError:
        low, high = int(positions.min()), int(positions.max())
        raise ShapeError(f"positions must lie in [0, {table.shape[0]}); these lie in [{low}, {high}]") from None
