"""A latent vector for a whole sequence: bottlenecks, and a token in front of a decoder that carries it."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError
from variform.parts.linear import Linear


class Deterministic(nn.Module):
    """z = f(W x + b).

    Shapes:
        x: [B, dim] -> [B, dim_latent], None

    Args:
        dim: features.
        dim_latent: features of the latent vector.
        activation: f; the identity when None.
    """

    def __init__(self, dim: int, dim_latent: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.project = Linear(dim, dim_latent)
        self.activation = activation

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """The latent vectors; there is no penalty."""
        latents = self.project(x)
        return latents if self.activation is None else self.activation(latents), None


class Variational(nn.Module):
    """z ~ N(m, v) with (m, log v) = W x + b, and its divergence from N(0, 1) (Kingma and Welling, arXiv:1312.6114).

    KL = sum_i max(0, (v_i + m_i^2 - log v_i - 1) / 2 - floor): free bits (Kingma et al. 2016, arXiv:1606.04934).

    Shapes:
        x: [B, dim] -> [B, dim_latent], [B]

    Args:
        dim: features.
        dim_latent: features of the latent vector.
        floor: nats a feature that cost nothing.

    Raises:
        ConfigError: the floor is negative.
    """

    def __init__(self, dim: int, dim_latent: int, floor: Annotated[float, Field(ge=0)] = 0.0) -> None:
        super().__init__()
        if floor < 0:
            raise ConfigError("must not be negative", path="floor", value=floor)
        self.project = Linear(dim, 2 * dim_latent)
        self.floor = floor

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance."""
        mean, log_variance = self.project(x).chunk(2, -1)
        return mean, log_variance

    def divergence(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The penalty of each row."""
        nats = 0.5 * (log_variance.exp() + mean.square() - log_variance - 1.0)
        return F.relu(nats - self.floor).sum(-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A draw, also in evaluation, and what it costs."""
        mean, log_variance = self.moments(x)
        return sample(mean, log_variance), self.divergence(mean, log_variance)


def sample(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A draw from a Gaussian, with the gradients of both."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


class LatentToken(nn.Module):
    """A latent vector as one token in front of a decoder: its `prefix`, with the rows that may not see it.

    In training the token of a row is hidden with probability `drop`, so that the decoder also learns without.

    Shapes:
        latents: [B, dim_latent] -> prefix [B, 1, dim], prefix_valid [B, 1] bool

    Args:
        dim_latent: features of the latent vector.
        dim: features of the decoder.
        drop: the probability.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, dim_latent: int, dim: int, drop: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop <= 1:
            raise ConfigError("a probability in [0, 1] is needed", path="drop", value=drop)
        self.project = Linear(dim_latent, dim)
        self.drop = drop

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The token, and where it is seen."""
        rows = torch.ones(latents.shape[0], device=latents.device)
        return self.project(latents).unsqueeze(1), F.dropout(rows, self.drop, self.training).bool().unsqueeze(1)
