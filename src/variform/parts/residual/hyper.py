"""Hyper connections: several residual streams a token, which are mixed, read and written with learned weights."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.ops.doubly_stochastic import doubly_stochastic
from variform.parts.kinds import MultiResidual

Size = Annotated[int, Field(gt=0)]


@register("hyper_connection")
class HyperConnection(MultiResidual):
    """Manifold-constrained hyper connections (Xie et al. 2025, arXiv:2512.24880; Zhu et al. 2024, arXiv:2409.19606).

    Of the streams X = [x_1 .. x_S] of a token, with n_s = LN(x_s):

        r = sigmoid(R + a N R'),  M = Sinkhorn(exp(C + a N C')),  w = 2 sigmoid(W + b N W')
        X <- M^T X + w f(r^T X)

    M is doubly stochastic, S x S: mixing keeps the mean of the streams and lets none grow, at any depth. Weights
    depend on the token alone, so that causality, packing and decoding are those of the branch. In the beginning the
    branch reads mostly the stream `home`, M is near the identity, and each stream is written with the factor one.

    Shapes:
        x: [B, L, S, dim], branch: [B, L, dim] -> [B, L, S, dim]

    Args:
        dim: features.
        residual_streams: how many streams there are (S).
        input_views: mixtures that the branch reads: 1, or 3, for queries, keys and values apart.
        home: the stream that the branch mostly reads in the beginning, modulo S.
        rounds: of Sinkhorn's iteration.
        legacy: the function of x-transformers to 2.31, for its checkpoints alone: there M is all ones, so that C and C'
            have no effect and streams grow S times a sublayer, and w = 2 sigmoid(W + 2 b sigmoid(N W')).
    """

    def __init__(
        self,
        dim: Size = INHERIT,
        residual_streams: Size = INHERIT,
        input_views: Literal[1, 3] = 1,
        home: Annotated[int, Field(ge=0)] = 0,
        rounds: Annotated[int, Field(ge=0)] = 5,
        legacy: bool = False,
    ) -> None:
        super().__init__()
        self.input_views = input_views
        self.home = home % residual_streams
        self.rounds = rounds
        self.legacy = legacy
        self.gain = nn.Parameter(torch.empty(dim))
        self.mixing = nn.Parameter(torch.empty(residual_streams, input_views + residual_streams))
        self.mixing_map = nn.Parameter(torch.empty(dim, input_views + residual_streams))
        self.mixing_scale = nn.Parameter(torch.empty(()))
        self.writing = nn.Parameter(torch.empty(residual_streams))
        self.writing_map = nn.Parameter(torch.empty(dim))
        self.writing_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    @classmethod
    def views(cls, args: Facts) -> int:
        """As it is told."""
        return int(args["input_views"])

    def reset_parameters(self) -> None:
        """Weights hardly depend on the token yet."""
        with torch.no_grad():
            self.gain.fill_(1.0)
            self.mixing.zero_()
            self.mixing[self.home, : self.input_views] = 1.0
            # exp(4) to one: streams keep apart, and the gradient of the mixture is not lost.
            self.mixing[:, self.input_views :].fill_diagonal_(1.0 if self.legacy else 4.0)
            for weight in (self.mixing_map, self.writing_map):
                nn.init.normal_(weight, 0.0, weight.shape[0] ** -0.5)
            self.writing.fill_(1.0 if self.legacy else 0.0)
            self.mixing_scale.fill_(0.01)
            self.writing_scale.fill_(0.01)

    def open(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """What the branch reads, the mixed streams, and the factors of what is written."""
        normed = F.layer_norm(x, x.shape[-1:], self.gain.to(x.dtype))
        weights = (normed @ self.mixing_map) * self.mixing_scale + self.mixing
        reading, mixing = weights[..., : self.input_views], weights[..., self.input_views :]
        read = reading.sigmoid().to(x.dtype).mT @ x
        if self.legacy:
            mixed = x.sum(-2, keepdim=True).expand_as(x)
            writing = 2 * (normed @ self.writing_map).sigmoid()
        else:
            mixed = doubly_stochastic(mixing, self.rounds).to(x.dtype).mT @ x
            writing = normed @ self.writing_map
        gains = 2 * (writing * self.writing_scale + self.writing).sigmoid()
        return read.unbind(-2), mixed, gains.to(x.dtype)
