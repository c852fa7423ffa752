"""Residual connections with a factor: DeepNorm's constant and a learned one."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.parts.kinds import Residual, Streams


@register("scaled")
class ScaledResidual(Residual):
    """x <- alpha x + beta f(x) with constants alpha and beta (beta = 1/2: macaron, arXiv:1906.02762).

    Args:
        alpha: factor on the stream.
        beta: factor on the branch.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta

    @classmethod
    def adds(cls, args: Facts) -> bool:
        """Where the stream has no factor."""
        return bool(args["alpha"] == 1.0)

    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Tensor:
        """Scale and add."""
        return torch.add(x if self.alpha == 1.0 else self.alpha * x, branch, alpha=self.beta)


@register("scaled_stream")
class ScaledStreamResidual(Residual):
    """x <- alpha s x + beta f(x), with s one learned factor a feature (NormFormer, arXiv:2110.09456).

    Args:
        dim: features.
        alpha: constant factor on the stream.
        beta: constant factor on the branch.
    """

    def __init__(self, dim: Annotated[int, Field(gt=0)] = INHERIT, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.scale = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All factors at one."""
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Tensor:
        """Scale and add."""
        scale = self.scale if self.alpha == 1.0 else self.alpha * self.scale
        return torch.add(scale * x, branch, alpha=self.beta)


@register("deepnorm")
class DeepNormResidual(Residual):
    """DeepNorm's residual (Wang et al. 2022, arXiv:2203.00555): x <- alpha x + f(x), alpha = (2 N)^(1/4).

    N is the depth of the stack in layers (attention and feedforward together count one). Fill the sublayer's
    `out_norm` too: DeepNorm is post-norm.

    Args:
        depth: layers of the stack.
        alpha: the factor, where another than the decoder-only or encoder-only formula is wanted.
    """

    def __init__(
        self, depth: Annotated[int, Field(gt=0)] = INHERIT, alpha: Annotated[float, Field(gt=0)] | None = None
    ) -> None:
        super().__init__()
        self.alpha = (2 * depth) ** 0.25 if alpha is None else alpha

    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Tensor:
        """Scale and add."""
        return self.alpha * x + branch


@register("layer_scale")
class LayerScaleResidual(Residual):
    """LayerScale (Touvron et al. 2021, arXiv:2103.17239): x <- x + gamma * f(x), gamma one learned factor a feature.

    Args:
        dim: features.
        init: initial factor; small for deep models.
    """

    def __init__(self, dim: Annotated[int, Field(gt=0)] = INHERIT, init: float = 1e-4) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @classmethod
    def adds(cls, args: Facts) -> bool:
        """The stream stays as it is."""
        return True

    def reset_parameters(self) -> None:
        """All factors at `init`."""
        nn.init.constant_(self.gamma, self.init)

    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Tensor:
        """Scale the branch and add."""
        return x + self.gamma * branch
