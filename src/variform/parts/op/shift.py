"""Token shift: features of neighbouring tokens side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.dims import Shape, shape_text
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.parts.flows import Flow, each_token
from variform.parts.kinds import Op, State, Streams
from variform.parts.op.common import STEPWISE

Piece = tuple[int, int, int]
"""First feature, the one after the last, and how many tokens further on it is read (negative: further back)."""


@register("shift")
class ShiftOp(Op):
    """Row t of the result holds, side by side, features of rows t + relative; zeros where there is no such row.

    With pieces (0, d/2, -1) and (d/2, d, 0) each token sees half of the previous one: token shift as in RWKV
    (arXiv:2305.13048). A relative above 0 looks ahead, and is no step of a causal model.

    Shapes:
        x: [..., L, dim] -> [..., L, sum of the pieces]

    Args:
        pieces: (first feature, the one after the last, relative); negative features count from the end.
    """

    ordered: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    can: ClassVar[Can] = STEPWISE

    def __init__(self, pieces: Annotated[tuple[Piece, ...], Field(min_length=1)]) -> None:
        super().__init__()
        self.pieces = pieces

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """A causal model does not look ahead."""
        ahead = [piece for piece in facts["pieces"] if piece[2] > 0]
        if facts.get("causal") is True and ahead:
            message = f"relative {ahead[0][2]} reads later tokens, and the model is causal"
            return [Problem("pieces", message, facts["pieces"], "use 0 or negative numbers")]
        return []

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """Causal unless a piece looks ahead."""
        back = all(relative <= 0 for _, _, relative in args["pieces"])
        return replace(cls.can, causal=back, decode=back)

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The features of the pieces add up."""
        shape = inputs[0]
        if len(shape) < 2:
            raise ShapeError(f"a shift takes [..., L, dim], not {shape_text(shape)}")
        dim = shape[-1]
        if not isinstance(dim, int):
            raise ShapeError(f"a shift needs a known number of features, not {dim}")
        return ((*shape[:-1], sum(_width(piece, dim) for piece in args["pieces"])),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Shift the pieces."""
        return shift_features(inputs[0], self.pieces)

    @property
    def reach(self) -> int:
        """How many tokens back it reads."""
        return max(0, *(-relative for _, _, relative in self.pieces))

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """Rows of tokens become rows of tokens."""
        if not inputs[0].rows:
            raise ShapeError(f"a shift needs the tokens' axis last but one, and reads {shape_text(inputs[0].shape)}")
        return each_token(self, inputs, outputs)

    def init_state(self, batch: int, max_len: int, like: Tensor, inputs: tuple[Flow, ...]) -> State | None:
        """As many tokens as it reads back: zeros, as before a sequence."""
        *between, dim = inputs[0].sizes(*range(1, len(inputs[0].shape) - 2), -1)
        return {"x": like.new_zeros(batch, *between, self.reach, dim)} if self.reach else None

    def step(self, inputs: tuple[Tensor, ...], state: State, streams: Streams) -> tuple[tuple[Tensor, ...], State]:
        """Shift the pieces of the tokens before and of the chunk."""
        (x,) = inputs
        valid: Tensor | None = streams.get("valid")
        before = state["x"].to(x.dtype)
        if valid is not None:
            y, kept = _shift_valid(x, before, valid, self.pieces)
            return (y,), {"x": kept}
        whole, length = torch.cat((before, x), -2), x.shape[-2]
        parts = [whole.narrow(-2, self.reach + by, length)[..., start:stop] for start, stop, by in self.pieces]
        return (torch.cat(parts, -1),), {"x": whole[..., length:, :]}


def _shift_valid(x: Tensor, before: Tensor, valid: Tensor, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """The pieces where each row has tokens of its own among padding, and the newest tokens of each row.

    Shapes:
        x: [B, ..., L, dim], before: [B, ..., reach, dim], valid: [B, L]
    """
    new, old = x.movedim(-2, 1), before.movedim(-2, 1)
    reach, length = old.shape[1], new.shape[1]
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    count = valid.long().cumsum(1)
    # A row's tokens stand side by side after those before; padding goes to one more place, which is not read.
    blank = torch.zeros_like(new[:, :1]).expand(-1, length + 1, *new.shape[2:])
    places = reach + torch.where(valid, count - 1, length)
    whole = torch.cat((old, blank), 1).index_put((rows, places), new)
    at = reach + (count - 1).clamp(min=0)
    y = torch.cat([whole[rows, at + by][..., start:stop] for start, stop, by in pieces], -1)
    newest = count[:, -1:] + torch.arange(reach, device=x.device)
    return y.movedim(1, -2), whole[rows, newest].movedim(1, -2)


def shift_features(x: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """The pieces of [..., L, dim], shifted and side by side."""
    return torch.cat([shift_rows(x[..., start:stop], by) for start, stop, by in pieces], dim=-1)


def shift_rows(x: Tensor, relative: int) -> Tensor:
    """y_t = x_{t + relative} along [..., L, dim], zeros outside."""
    length = x.shape[-2]
    later = max(-length, min(length, -relative))
    return F.pad(x, (0, 0, later, -later)) if later else x


def _width(piece: Piece, dim: int) -> int:
    start, stop, _ = piece
    first, last = (end + dim if end < 0 else end for end in (start, stop))
    if not 0 <= first < last <= dim:
        raise ShapeError(
            f"features {start} to {stop} are to be shifted, and there are {dim}: 0 <= start < end <= {dim}"
        )
    return last - first
