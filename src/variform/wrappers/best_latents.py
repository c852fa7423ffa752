"""Latent vectors in front of a decoder, of which the one counts that tells a text best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError, ShapeError
from variform.parts.linear import Linear
from variform.wrappers.rollouts import checked_ids, checked_model

Run = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
"""From ids [B, L], features in front [B, n, dim] and a mask [B, L] of real tokens to logits [B, L, V]."""

Choose = Callable[[Tensor, Tensor], Tensor]
"""From losses [B, K] and logits [B, K, L, V] of candidates to the winners [B], or to scores [B, K], the higher wins."""

Latents = Tensor | Sequence[Tensor | None]


def lowest_loss(losses: Tensor, logits: Tensor) -> Tensor:
    """The candidate of the lowest loss, [B, K] -> [B]."""
    return losses.argmin(-1)


def explored(latents: Tensor, candidates: int, place: int) -> Tensor:
    """Candidates that differ at one place, which is drawn: [B, n, d] -> [B, K, n, d]."""
    found = latents.unsqueeze(1).repeat(1, candidates, 1, 1)
    rows, _, dim = latents.shape
    found[:, :, place] = torch.randn(rows, candidates, dim, dtype=latents.dtype, device=latents.device)
    return found


def divergence(logits: Tensor, counted: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of the candidates' distributions in nats, the mean over tokens that count.

    Shapes:
        logits: [B, K, L, V]; counted: [B, L] bool -> a scalar
    """
    logs = logits.log_softmax(-1)
    mixed = (logs.logsumexp(1) - math.log(logs.shape[1])).unsqueeze(1).expand_as(logs)
    each = F.kl_div(mixed, logs, log_target=True, reduction="none").sum(-1).mean(1)
    return torch.where(counted, each, 0.0).sum() / counted.sum().clamp(min=1)


class BestLatents(nn.Module):
    """Trains a model with latent vectors of which the best of several counts (Gladstone et al., arXiv:2607.27372).

    n vectors z_1 .. z_n stand in front of a text. One place is drawn, K vectors are tried there, and the loss is the
    cross entropy of the best of them, less a weight times how far the candidates' answers are from one another; so that
    places learn to stand for what the text does not say (discrete distribution networks, Yang 2024, arXiv:2401.00036).

    Shapes:
        ids: [B, L] -> the loss, a scalar

    Args:
        model: a causal model of the core that takes a prefix (its embedding is `prefixed`).
        places: n.
        dim_latent: features of a vector; the model's by default.
        candidates: K.
        project: map vectors even where they have the model's features.
        drop: how often a training step has no vectors.
        repulsion: weight of the divergence.
        at_once: how many rows the model is given at a time; all by default.

    Raises:
        ConfigError: another model, or values that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        places: int = 4,
        dim_latent: int | None = None,
        candidates: int = 2,
        project: bool = False,
        drop: float = 0.0,
        repulsion: float = 0.0,
        at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.model = checked_model(model)
        sizes = {"places": places, "dim_latent": dim_latent, "candidates": candidates, "at_once": at_once}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ConfigError("must be positive", path=name, value=size)
        if not 0 <= drop <= 1:
            raise ConfigError("a probability in [0, 1] is needed", path="drop", value=drop)
        dim = self.model.dim
        self.dim_latent = dim if dim_latent is None else dim_latent
        self.project = Linear(self.dim_latent, dim) if project or self.dim_latent != dim else nn.Identity()
        self.places = places
        self.candidates = candidates
        self.drop = drop
        self.repulsion = repulsion
        self.at_once = at_once

    def forward(
        self,
        ids: Tensor,
        latents: Latents | None = None,
        valid: Tensor | None = None,
        *,
        place: int | None = None,
        counted: Tensor | None = None,
        candidates: int | None = None,
        choose: Choose = lowest_loss,
        run: Run | None = None,
        repulsion: float | None = None,
        drop: float | None = None,
        at_once: int | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            ids: token ids.
            latents: [B, n, d], whose drawn place is replaced; a list with a vector [B, d] or None, which is drawn, a
                place; or candidates [B, K, n, d]. By default all are drawn.
            valid: [B, L] bool, False at padding.
            place: which one is tried; drawn by default.
            counted: [B, L - 1] bool, which next tokens count; by default real ones after real ones.
            candidates: another K.
            choose: another winner than that of the lowest loss.
            run: calls the model in another way.
            repulsion: another weight of the divergence.
            drop: another share of steps without vectors.
            at_once: another number of rows.
        """
        checked_ids(ids, 2)
        inputs, labels = ids[:, :-1], ids[:, 1:].long()
        if counted is None:
            counted = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid[:, 1:] & valid[:, :-1]
        seen = None if valid is None else valid[:, :-1]
        run = self._run if run is None else run
        drop = self.drop if drop is None else drop
        if self.training and drop > 0 and bool(torch.rand(()) < drop):
            each = F.cross_entropy(run(inputs, None, seen).transpose(1, 2), labels, reduction="none")
            return torch.where(counted, each, 0.0).sum() / counted.sum().clamp(min=1)
        tried = self.tried(latents, len(ids), place, candidates)
        logits = self.answers(inputs, tried, seen, run, at_once)
        count = logits.shape[1]
        wanted = labels.unsqueeze(1).expand(-1, count, -1)
        each = F.cross_entropy(logits.permute(0, 3, 1, 2), wanted, reduction="none")
        losses = torch.where(counted.unsqueeze(1), each, 0.0).sum(-1) / counted.sum(-1, keepdim=True).clamp(min=1)
        winners = choose(losses, logits)
        winners = winners.argmax(-1) if winners.dim() > 1 else winners
        loss = losses.gather(1, winners.unsqueeze(1)).mean()
        repulsion = self.repulsion if repulsion is None else repulsion
        return loss - repulsion * divergence(logits, counted) if repulsion and count > 1 else loss

    def draw(self, latents: Latents | None, rows: int) -> Tensor:
        """Vectors [B, n, d]: those that are given, and others that are drawn.

        Raises:
            ShapeError: they have another shape.
        """
        like = next(self.model.parameters())
        new: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        if latents is None:
            return torch.randn(rows, self.places, self.dim_latent, **new)
        if not isinstance(latents, Tensor):
            if len(latents) != self.places:
                raise ShapeError(f"there are {self.places} latent vectors, and {len(latents)} were given")
            # Drawn for every place, so that what is drawn does not depend on which are given.
            drawn = [(one, torch.randn(rows, self.dim_latent, **new)) for one in latents]
            latents = torch.stack([noise if one is None else one for one, noise in drawn], 1)
        shape = (rows, self.places, self.dim_latent)
        if (latents.shape[0], *latents.shape[-2:]) != shape or latents.dim() not in (3, 4):
            raise ShapeError(f"latents are {list(shape)}, or candidates in a second axis; got {list(latents.shape)}")
        return latents

    def tried(self, latents: Latents | None, rows: int, place: int | None, candidates: int | None) -> Tensor:
        """Candidates [B, K, n, d]; the arguments are those of a call."""
        place = int(torch.randint(self.places, ())) if place is None else place
        if not 0 <= place < self.places:
            raise ShapeError(f"place is one of the {self.places}, not {place}")
        known = self.draw(latents, rows)
        return (
            explored(known, self.candidates if candidates is None else candidates, place) if known.dim() == 3 else known
        )

    def prefix(self, latents: Tensor) -> Tensor:
        """What stands in front of the text: [.., n, d] -> [.., n, dim]."""
        found: Tensor = self.project(latents)
        return found

    def answers(
        self, ids: Tensor, tried: Tensor, seen: Tensor | None, run: Run | None = None, at_once: int | None = None
    ) -> Tensor:
        """The logits of each candidate, [B, K, L, V].

        Args:
            ids: [B, L].
            tried: [B, K, n, d].
            seen: [B, L] bool, False at padding.
            run: calls the model in another way.
            at_once: another number of rows at a time.
        """
        rows, count = tried.shape[:2]
        several = [x if x is None else x.repeat_interleave(count, 0) for x in (ids, seen)]
        parts = [self.prefix(tried.flatten(0, 1)), *several]
        size = (self.at_once if at_once is None else at_once) or rows * count
        call = self._run if run is None else run
        made = []
        for start in range(0, rows * count, size):
            front, some, real = (None if x is None else x[start : start + size] for x in parts)
            assert some is not None
            made.append(call(some, front, real))
        whole = torch.cat(made)
        return whole.view(rows, count, *whole.shape[1:])

    def _run(self, ids: Tensor, prefix: Tensor | None, valid: Tensor | None) -> Tensor:
        more: dict[str, Any] = {} if prefix is None else {"prefix": prefix}
        logits: Tensor = self.model(ids, valid=valid, **more)
        return logits[:, logits.shape[1] - ids.shape[1] :]
