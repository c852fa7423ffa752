"""Learning hidden states by predicting them: the logits are a probe, vectors are held to a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError
from variform.parts.linear import Linear
from variform.parts.norm.norms import RMSNorm
from variform.wrappers.gaussian import Sketch
from variform.wrappers.rollouts import checked_ids, checked_model, logits_of, shares, step_means, windows


class Predictor(nn.Module):
    """W3 f(W2 f(W1 norm(x))) with f = LeakyReLU: the next features from these, and what is told beside them.

    Shapes:
        x: [.., inputs] -> [.., dim]
    """

    def __init__(self, inputs: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(inputs, eps=1e-24)
        self.maps = nn.ModuleList([Linear(inputs, hidden), Linear(hidden, hidden), Linear(hidden, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """The prediction."""
        up, between, down = self.maps
        found: Tensor = down(F.leaky_relu(between(F.leaky_relu(up(self.norm(x))))))
        return found


class PredictionLosses(NamedTuple):
    """The parts of the loss, without their weights.

    Args:
        tokens: cross entropy of the probe.
        told: error of the predictions that know the next tokens.
        untold: of those that do not.
        gaussian: how far hidden states are from a Gaussian.
    """

    tokens: Tensor
    told: Tensor
    untold: Tensor
    gaussian: Tensor


class LatentPrediction(nn.Module):
    """LeJEPA of texts (Balestriero and LeCun 2025, arXiv:2511.08544; LLM-JEPA, Huang et al. 2025, arXiv:2509.14252).

    From features x_i a predictor tells the hidden states h_(i+1) .. h_(i+R), each step from its own answer and, where
    it is told, the next token; all of unit length. Loss = CE of a head on h_i whose gradients do not reach the model
    + (1 - lambda) * error + lambda * SIGReg of h and x. The head "probe" reads more from h than a linear one.

    Shapes:
        ids: [B, L] -> the loss, a scalar

    Args:
        model: a causal model of the core.
        rollouts: R.
        weights: of the steps, which are made to sum to 1; alike by default.
        told: predict with the next token.
        untold: predict without.
        unit: compare vectors of unit length.
        detach: no gradients through the states that are to be told.
        gradient: part of the gradients of the cross entropy that reaches the model.
        latent_weight: factor of the error.
        gaussian_weight: lambda.
        sketch: the statistic of SIGReg.

    Raises:
        ConfigError: another model, or values that do not fit.
    """

    shares: Tensor

    def __init__(
        self,
        model: nn.Module,
        rollouts: int = 1,
        weights: Sequence[float] | None = None,
        told: bool = True,
        untold: bool = False,
        unit: bool = True,
        detach: bool = True,
        gradient: float = 0.0,
        latent_weight: float = 1.0,
        gaussian_weight: float = 0.05,
        sketch: Sketch | None = None,
    ) -> None:
        super().__init__()
        self.model = checked_model(model)
        if rollouts < 1:
            raise ConfigError("must be positive", path="rollouts", value=rollouts)
        if not told and not untold:
            raise ConfigError("one of told and untold is needed: nothing is predicted", path="told")
        dim = self.model.dim
        assert self.model.vocab_size is not None
        self.actions = nn.Embedding(self.model.vocab_size, dim) if told else None
        self.told = Predictor(2 * dim, 2 * dim, dim) if told else None
        self.untold = Predictor(dim, 2 * dim, dim) if untold else None
        self.rollouts = rollouts
        self.register_buffer("shares", shares(weights, rollouts), persistent=False)
        self.unit = unit
        self.detach = detach
        self.gradient = gradient
        self.latent_weight = latent_weight
        self.gaussian_weight = gaussian_weight
        self.sketch = sketch or Sketch()

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
        return self.total(self.losses(hidden, None, ids, counted))

    def total(self, parts: PredictionLosses) -> Tensor:
        """The weighted sum."""
        share = self.gaussian_weight
        predicted = (parts.told + parts.untold) * self.latent_weight
        return parts.tokens + (1 - share) * predicted + share * parts.gaussian

    def losses(self, hidden: Tensor, features: Tensor | None, ids: Tensor, counted: Tensor) -> PredictionLosses:
        """The parts of the loss.

        Args:
            hidden: [B, L, dim] hidden states.
            features: [B, L, dim] of an earlier layer, from which is predicted; None for the hidden states.
            ids: [B, L] the tokens they are of.
            counted: [B, L - 1] bool, which next tokens count.
        """
        before = hidden[:, :-1]
        probed = before * self.gradient + before.detach() * (1 - self.gradient) if self.gradient else before.detach()
        each = F.cross_entropy(logits_of(self.model, probed).transpose(1, 2), ids[:, 1:].long(), reduction="none")
        tokens = step_means(each.unsqueeze(0), counted.unsqueeze(0)).sum()
        steps = min(self.rollouts, ids.shape[1] - 1)
        wanted = hidden.detach() if self.detach else hidden
        wanted = windows((F.normalize(wanted, dim=-1, eps=1e-6) if self.unit else wanted)[:, 1:], steps)
        masks = windows(counted, steps)
        start = before if features is None else features[:, :-1]
        actions = None if self.actions is None else self.actions(windows(ids[:, 1:], steps))
        zero = hidden.new_zeros(())
        told = zero if self.told is None else self._error(self.told, start, actions, wanted, masks)
        untold = zero if self.untold is None else self._error(self.untold, start, None, wanted, masks)
        gaussian = self.sketch(before, counted)
        if features is not None:
            gaussian = (gaussian + self.sketch(start, counted)) / 2
        return PredictionLosses(tokens, told, untold, gaussian)

    def _error(
        self, predictor: nn.Module, latent: Tensor, actions: Tensor | None, wanted: Tensor, masks: Tensor
    ) -> Tensor:
        found = []
        for step in range(len(wanted)):
            latent = predictor(latent if actions is None else torch.cat((latent, actions[step]), -1))
            found.append(F.normalize(latent, dim=-1, eps=1e-6) if self.unit else latent)
        errors = (torch.stack(found) - wanted).square().mean(-1)
        return (step_means(errors, masks) * self.shares[: len(wanted)].to(errors.dtype)).sum()
