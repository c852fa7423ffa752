"""Predicting the next hidden state from this one and the next token, several steps ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError
from variform.parts.linear import Linear
from variform.wrappers.gaussian import Sketch
from variform.wrappers.rollouts import (
    checked_ids,
    checked_model,
    logits_of,
    shares,
    step_means,
    token_vectors,
    windows,
)


class ResidualDynamics(nn.Module):
    """h_(i+1) = h_i + f([h_i, e_(i+1)]): the next state from this one and the vector of the next token.

    Shapes:
        vectors: [R, B, L, dim] of the next tokens; latent: [B, L, dim] -> [R, B, L, dim]

    Args:
        net: f, from 2 dim to dim features.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, vectors: Tensor, latent: Tensor) -> Tensor:
        """The states step after step."""
        found = []
        for one in vectors:
            latent = latent + self.net(torch.cat((latent, one), -1))
            found.append(latent)
        return torch.stack(found)


class RecurrentDynamics(nn.Module):
    """A gated recurrent unit whose first state is the model's; shapes as for `ResidualDynamics`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, dim)

    def forward(self, vectors: Tensor, latent: Tensor) -> Tensor:
        """The states step after step."""
        found, _ = self.gru(vectors.flatten(1, 2), latent.reshape(1, -1, latent.shape[-1]))
        answer: Tensor = found
        return answer.view_as(vectors)


def residual_network(dim: int, hidden: int, depth: int) -> nn.Sequential:
    """A norm and an MLP from 2 dim to dim features, which gives 0 at first."""
    sizes = [2 * dim, *(hidden,) * (depth - 1), dim]
    maps: list[nn.Module] = [Linear(a, b) for a, b in pairwise(sizes)]
    nn.init.zeros_(maps[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(maps[-1].bias)  # type: ignore[arg-type]
    layers = [layer for one in maps[:-1] for layer in (one, nn.GELU())]
    return nn.Sequential(nn.LayerNorm(2 * dim), nn.Sequential(*layers, maps[-1]))


class SquaredAndCosine(nn.Module):
    """(1 - w) (x - y)^2 + w (1 - cos(x, y)), for each feature: [.., dim] -> [.., dim]."""

    def __init__(self, weight: float = 0.9) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        """The errors."""
        angle = 1 - F.cosine_similarity(found, wanted, dim=-1).unsqueeze(-1)
        return (found - wanted).square() * (1 - self.weight) + angle * self.weight


ERRORS: dict[str, Callable[[], nn.Module]] = {
    "smooth_l1": partial(nn.SmoothL1Loss, reduction="none"),
    "mse": partial(nn.MSELoss, reduction="none"),
    "mse_and_cosine_sim": SquaredAndCosine,
}
"""Errors of predicted states by name."""


class LatentLosses(NamedTuple):
    """The parts of the loss, without their weights.

    Args:
        tokens: cross entropy of the next tokens.
        latents: error of the predicted states.
        divergence: of what the head makes of predicted states, from what it makes of the real ones.
        gaussian: how far hidden states are from a Gaussian.
    """

    tokens: Tensor
    latents: Tensor
    divergence: Tensor
    gaussian: Tensor


class NextLatent(nn.Module):
    """Trains a causal model to have hidden states that tell the next one (Teoh et al. 2025, arXiv:2511.05963).

    From the state h_i the dynamics go on with tokens i + 1 .. i + R, each step from its own answer; loss =
    CE + w sum_r a_r E(h^(r), sg(h_(i+r))) + v sum_r a_r KL(head(sg(h_(i+r))) || head(h^(r))), where the head is fixed
    in KL, sg stops gradients and the mean is taken over real targets. With `decay` each step counts less where the
    steps before it erred: exp(-decay * sum of their errors), or with a threshold
    sigmoid(-decay * (sum of their errors - threshold)).

    Shapes:
        ids: [B, L] -> the loss, a scalar

    Args:
        model: a causal model of the core.
        dynamics: from (vectors of the next tokens, states) to the next states; a residual MLP by default.
        error: "smooth_l1", "mse", "mse_and_cosine_sim", or a module from (found, wanted) to errors of each feature.
        rollouts: R.
        weights: a_r, which are made to sum to 1; alike by default.
        latent_weight: w.
        kl_weight: v.
        gaussian_weight: of the statistic of the hidden states.
        sketch: the statistic.
        decay: None for none.
        threshold: see above.

    Raises:
        ConfigError: another model, or values that do not fit.
    """

    shares: Tensor

    def __init__(
        self,
        model: nn.Module,
        dynamics: nn.Module | None = None,
        error: str | nn.Module = "smooth_l1",
        rollouts: int = 1,
        weights: Sequence[float] | None = None,
        latent_weight: float = 1.0,
        kl_weight: float = 1.0,
        gaussian_weight: float = 0.0,
        sketch: Sketch | None = None,
        decay: float | None = 1.0,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.model = checked_model(model)
        if rollouts < 1:
            raise ConfigError("must be positive", path="rollouts", value=rollouts)
        if isinstance(error, str) and error not in ERRORS:
            raise ConfigError(f"one of {', '.join(ERRORS)} or a module is needed", path="error", value=error)
        dim = self.model.dim
        self.dynamics = dynamics or ResidualDynamics(residual_network(dim, dim, 3))
        self.error: nn.Module = ERRORS[error]() if isinstance(error, str) else error
        self.rollouts = rollouts
        self.register_buffer("shares", shares(weights, rollouts), persistent=False)
        self.latent_weight = latent_weight
        self.kl_weight = kl_weight
        self.gaussian_weight = gaussian_weight
        self.sketch = sketch or Sketch()
        self.decay = decay
        self.threshold = threshold

    def forward(self, ids: Tensor, valid: Tensor | None = None, **streams: Any) -> Tensor:
        """The loss.

        Args:
            ids: token ids.
            valid: [B, L] bool, False at padding.
            **streams: further inputs of the model.
        """
        checked_ids(ids, 2)
        hidden = self.model(ids, valid=valid, hidden=True, **streams)
        counted = torch.ones_like(ids[:, 1:], dtype=torch.bool) if valid is None else valid[:, 1:] & valid[:, :-1]
        return self.total(self.losses(hidden, ids, counted))

    def total(self, parts: LatentLosses) -> Tensor:
        """The weighted sum."""
        sums = parts.tokens + self.latent_weight * parts.latents + self.kl_weight * parts.divergence
        return sums + self.gaussian_weight * parts.gaussian

    def losses(self, hidden: Tensor, ids: Tensor, counted: Tensor) -> LatentLosses:
        """The parts of the loss.

        Args:
            hidden: [B, L, dim] hidden states.
            ids: [B, L] the tokens they are of.
            counted: [B, L - 1] bool, which next tokens count.
        """
        logits = logits_of(self.model, hidden[:, :-1])
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:].long(), reduction="none")
        tokens = step_means(each.unsqueeze(0), counted.unsqueeze(0)).sum()
        wanted = windows(hidden[:, 1:], self.rollouts).detach()
        vectors = windows(token_vectors(self.model, ids)[:, 1:], self.rollouts).detach()
        found = self.dynamics(vectors, hidden[:, :-1])
        errors = self.error(found, wanted).mean(-1)
        masks = windows(counted, self.rollouts)
        weights = self._weights(errors.detach())
        zero = hidden.new_zeros(())
        divergence = gaussian = zero
        latents = step_means(errors * weights, masks).sum() if self.latent_weight else zero
        if self.kl_weight:
            divergence = step_means(self._divergence(found, wanted) * weights, masks).sum()
        if self.gaussian_weight:
            gaussian = self.sketch(hidden[:, :-1], counted)
        return LatentLosses(tokens, latents, divergence, gaussian)

    def _weights(self, errors: Tensor) -> Tensor:
        """How much each step counts, [R, B, L]."""
        own = self.shares.to(errors.dtype).view(-1, 1, 1)
        if self.decay is None:
            return own
        before = errors.cumsum(0) - errors
        if self.threshold is None:
            return own * (-self.decay * before).exp()
        return own * (-self.decay * (before - self.threshold)).sigmoid()

    def _divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            target = logits_of(self.model, wanted).log_softmax(-1)
        made = logits_of(self.model, found, frozen=True).log_softmax(-1)
        return F.kl_div(made, target, log_target=True, reduction="none").sum(-1)
