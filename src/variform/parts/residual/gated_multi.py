"""Gated multi residual: several residual streams a token, read and written through gates."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.parts.kinds import MultiResidual
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("gated_multi")
class GatedMultiResidual(MultiResidual):
    """Streams that are read through a gate a feature and written through a gate a stream.

    As in Qwen3.8 (qwen.ai/blog?id=qwen3.8-flash-next, as x-transformers 2.31 has it). Of the streams x_1 .. x_S of a
    token, with n_s = g_s RMSNorm(x_s):

        h = c silu(A [n_1; ..; n_S] / S)
        branch input = sum_s sigmoid(R_s + (B h)_s) n_s / S,  x_s <- x_s + 2 sigmoid(W + C h)_s f(branch input)

    What is read is normed, so that the branch needs no norm of its own. B and C begin at zero.

    Shapes:
        x: [B, L, S, dim], branch: [B, L, dim] -> [B, L, S, dim]

    Args:
        rank: size of h.
        dim: features.
        residual_streams: how many streams there are (S).
        input_views: mixtures that the branch reads: 1, or 3, for queries, keys and values apart.
        home: the stream whose gate is most open in the beginning, modulo S.
    """

    def __init__(
        self,
        rank: Size,
        dim: Size = INHERIT,
        residual_streams: Size = INHERIT,
        input_views: Literal[1, 3] = 1,
        home: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        super().__init__()
        self.input_views = input_views
        self.home = home % residual_streams
        self.gain = nn.Parameter(torch.empty(residual_streams, dim))
        self.reading = nn.Parameter(torch.empty(input_views, residual_streams, dim))
        self.writing = nn.Parameter(torch.empty(residual_streams))
        self.scale = nn.Parameter(torch.empty(()))
        self.down = Linear(residual_streams * dim, rank, bias=False)
        self.reading_map = Linear(rank, input_views * residual_streams * dim, bias=False, std=0.0)
        self.writing_map = Linear(rank, residual_streams, bias=False, std=0.0)
        self.reset_parameters()

    @classmethod
    def views(cls, args: Facts) -> int:
        """As it is told."""
        return int(args["input_views"])

    def reset_parameters(self) -> None:
        """Gates that do not depend on the token."""
        with torch.no_grad():
            self.gain.fill_(1.0)
            self.reading.zero_()
            self.reading[:, self.home] = 1.0
            self.writing.zero_()
            self.scale.fill_(0.01)

    def open(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """What the branch reads, the streams as they are, and the factors of what is written."""
        streams = x.shape[-2]
        normed = F.rms_norm(x, x.shape[-1:]) * self.gain.to(x.dtype)
        hidden = F.silu(self.down(normed.flatten(-2) / streams)) * self.scale
        gates = self.reading_map(hidden).view(*x.shape[:2], *self.reading.shape) + self.reading
        read = (gates.sigmoid().to(x.dtype) * normed.unsqueeze(-3)).sum(-2) / streams
        gains = 2 * (self.writing_map(hidden) + self.writing).sigmoid()
        return read.unbind(-2), x, gains.to(x.dtype)
