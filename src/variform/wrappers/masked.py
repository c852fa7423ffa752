"""Predicting masked tokens, a few or all of a sequence: masked diffusion, and filling a sequence in step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError, ShapeError
from variform.generate.readers import evaluating

Schedule = Callable[[Tensor], Tensor]
"""From the time in [0, 1] to the share of masked tokens: 1 at time 0, 0 at time 1, never growing."""

Predict = Callable[[Tensor], Tensor]
"""From token ids [B, L] to logits [B, L, V]."""


def linear(time: Tensor) -> Tensor:
    """1 - t."""
    return 1 - time


def cosine(time: Tensor) -> Tensor:
    """cos(pi t / 2) (MaskGIT, Chang et al. 2022, arXiv:2202.04200)."""
    return torch.cos(time * math.pi / 2)


SCHEDULES: dict[str, Schedule] = {"linear": linear, "cosine": cosine}
"""Schedules by name."""


def draw_masks(ids: Tensor, schedule: Schedule, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Times of rows, and which of their tokens are masked: evenly drawn, as many as the schedule says, at least one.

    Shapes:
        ids: [B, L]; valid: [B, L] bool -> [B] floats, [B, L] bool
    """
    batch, length = ids.shape
    times = torch.empty(batch, device=ids.device).uniform_(0, 1)
    order = torch.rand(batch, length, device=ids.device)
    sizes: Tensor | int = length
    if valid is not None:
        order = order.masked_fill(~valid, 2.0)
        sizes = valid.sum(1)
    count = (schedule(times) * sizes).clamp(min=1.0)
    masked = order.argsort(-1).argsort(-1) < count.unsqueeze(1) if valid is not None else _ranks(order, count)
    return times, masked if valid is None else masked & valid


def _ranks(order: Tensor, count: Tensor) -> Tensor:
    return order.argsort(-1).float() < count.unsqueeze(1)  # a permutation is as good as its inverse


def subset(mask: Tensor, share: Tensor | float) -> Tensor:
    """A part of the masked tokens of each row, evenly drawn: [B, L] bool -> [B, L] bool."""
    order = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1.0)
    ranks = order.argsort(-1).argsort(-1) - (~mask).sum(1, keepdim=True)
    return (ranks < mask.sum(1, keepdim=True) * share) & mask


def corrupt(ids: Tensor, mask: Tensor, mask_id: int, vocab_size: int, keep: float, replace: float) -> Tensor:
    """The ids as a model sees them: masked, but a part as it is and a part replaced (BERT, arXiv:1810.04805).

    Each of the two is done for half of the batches.

    Args:
        ids: [B, L].
        mask: [B, L] bool, which tokens are to be predicted.
        mask_id: the token in their place.
        vocab_size: random tokens are below.
        keep: share of them that stay as they are.
        replace: share that become a random token.
    """
    hidden: Tensor = mask
    left: Tensor | float = 1.0
    if keep > 0:
        does = _coin(ids.device)
        left = 1.0 - keep * does
        hidden = hidden & ~(subset(mask, keep) & does)
    if replace > 0:
        random = subset(hidden, replace * left) & _coin(ids.device)
        ids = torch.where(random, torch.randint(0, vocab_size, ids.shape, device=ids.device), ids)
        hidden = hidden & ~random
    return ids.masked_fill(hidden, mask_id)


def _coin(device: torch.device) -> Tensor:
    return torch.rand((), device=device) < 0.5  # a tensor: what is done is one graph either way


def diffusion_loss(logits: Tensor, ids: Tensor, mask: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """An upper bound of the negative log likelihood, in nats a token: mean over rows of -s'(t) * mean CE of the masked.

    That is MDLM's -s'(t) / s(t) * (sum of CE) / L (Sahoo et al. 2024, arXiv:2406.07524, eq. 10) with the share that is
    really masked in the place of s(t), so that the weight is bounded, and the bound the same for every schedule.

    Shapes:
        logits: [B, L, V]; ids, mask: [B, L]; times: [B] -> a scalar
    """
    errors = torch.where(mask, token_errors(logits, ids), 0.0).sum(1) / mask.sum(1).clamp(min=1)
    return (errors * -slope(schedule, times).to(errors.dtype)).mean()


def token_errors(logits: Tensor, ids: Tensor) -> Tensor:
    """The cross entropy of each token, [B, L, V] and [B, L] -> [B, L]."""
    return F.cross_entropy(logits.transpose(1, 2), ids.long(), reduction="none")


def slope(schedule: Schedule, times: Tensor) -> Tensor:
    """The derivative of a schedule at each time."""
    grad = torch.func.vmap(torch.func.grad(schedule))
    found: Tensor = grad(times)
    return found


def gumbel_noise(like: Tensor) -> Tensor:
    """Noise whose addition to logits makes the greatest a draw from their softmax."""
    noise = torch.zeros_like(like).uniform_(0, 1)
    return -((-((noise + 1e-10).log()) + 1e-10).log())


def draw(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Tokens drawn from logits [..., V] -> [...]."""
    least = temperature.clamp(min=1e-10) if isinstance(temperature, Tensor) else max(temperature, 1e-10)
    return (logits / least + gumbel_noise(logits)).argmax(-1)


def mean_over(x: Tensor, of: Tensor) -> Tensor:
    """The mean of the elements that are meant; the others may be anything."""
    return torch.where(of, x, 0.0).sum() / of.sum()


def fill_in(
    predict: Predict,
    ids: Tensor,
    mask_id: int,
    steps: int,
    schedule: Schedule,
    *,
    temperature: float = 1.0,
    keep_likeliest: float | None = None,
    scores: Callable[[Tensor], Tensor] | None = None,
    noise: float = 1.0,
    again: bool = False,
) -> Tensor:
    """Fill a masked sequence in, the surest tokens first (Mask-Predict, Ghazvininejad et al. 2019, arXiv:1904.09324).

    In each step all masked tokens are drawn, and the least sure ones masked again, as many as the schedule says. The
    temperature falls to 0 with the steps.

    Args:
        predict: the model.
        ids: [B, L], `mask_id` throughout.
        mask_id: the token that is to be filled in; it is never drawn.
        steps: how many.
        schedule: the share that is still masked.
        temperature: of the first draws.
        keep_likeliest: the share of the vocabulary that is never drawn, the least likely; None for none.
        scores: how likely a token is to be wrong, [B, L] -> [B, L]; by default what the model gave others.
        noise: how much chance is in the scores.
        again: whether tokens that were filled in may be masked again.
    """
    masked = torch.full_like(ids, True, dtype=torch.bool)
    counts = (schedule(torch.linspace(0.0, 1.0, steps + 1)[1:]) * ids.shape[1]).long().tolist()
    for step, count in enumerate(counts):
        left = (steps - 1 - step) / steps
        logits = predict(ids)
        if mask_id < logits.shape[-1]:
            barred = torch.arange(logits.shape[-1], device=logits.device) == mask_id
            logits = logits.masked_fill(barred, -torch.inf)
        if keep_likeliest is not None:
            logits = likeliest(logits, 1 - keep_likeliest)
        drawn = draw(logits, max(temperature * left, 1e-3))
        ids = torch.where(masked, drawn, ids)
        if scores is not None:
            doubt = scores(ids)
            doubt = doubt + noise * gumbel_noise(doubt) * left
        else:
            doubt = 1 - logits.softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        if not again:
            doubt = doubt.masked_fill(~masked, -torch.finfo(doubt.dtype).max)
        masked = torch.zeros_like(masked).scatter(1, doubt.topk(count, -1).indices, True)
        ids = ids.masked_fill(masked, mask_id)
    return ids


def likeliest(logits: Tensor, share: float) -> Tensor:
    """Keep this share of the vocabulary, the most likely tokens; [..., V] -> [..., V]."""
    values, places = logits.topk(max(1, math.ceil(share * logits.shape[-1])), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, places, values)


class MaskedDiffusion(nn.Module):
    """Trains a model that sees both sides to predict masked tokens, and fills sequences in (MDLM, arXiv:2406.07524).

    Shapes:
        ids: [B, L] token ids -> the loss, a scalar: nats a token, an upper bound

    Args:
        model: from token ids to logits.
        mask_id: the token in the place of masked ones.
        schedule: "linear", "cosine", or a function of the time.
        steps: how many when a sequence is filled in.

    Raises:
        ConfigError: no such schedule or token, or a model that sees one side alone.
    """

    def __init__(
        self,
        model: nn.Module,
        mask_id: int,
        schedule: Literal["linear", "cosine"] | Schedule = "linear",
        steps: int = 18,
    ) -> None:
        super().__init__()
        if getattr(model, "causal", False):
            raise ConfigError("what stands behind a masked token is to be seen: causal=False is needed", path="model")
        size = getattr(model, "vocab_size", None)
        if mask_id < 0 or (size is not None and mask_id >= size):
            raise ConfigError(f"must be one of the {size} tokens", path="mask_id", value=mask_id)
        if steps < 1:
            raise ConfigError("must be positive", path="steps", value=steps)
        self.model = model
        self.mask_id = mask_id
        self.schedule = schedule_of(schedule)
        self.steps = steps

    def forward(self, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            ids: token ids.
            valid: [B, L] bool, False at padding.
        """
        if ids.dim() != 2:
            raise ShapeError(f"token ids are [batch, length], not {list(ids.shape)}")
        times, mask = draw_masks(ids, self.schedule, valid)
        more: dict[str, Any] = {} if valid is None else {"valid": valid}
        logits = self.model(ids.masked_fill(mask, self.mask_id), **more)
        return diffusion_loss(logits, ids, mask, times, self.schedule)

    @torch.no_grad()
    def generate(self, batch: int, length: int, temperature: float = 1.0) -> Tensor:
        """Sequences from nothing, [batch, length]."""
        device = next(self.model.parameters()).device
        ids = torch.full((batch, length), self.mask_id, device=device)
        with evaluating(self.model):
            return fill_in(self.model, ids, self.mask_id, self.steps, self.schedule, temperature=temperature)


def schedule_of(chosen: str | Schedule) -> Schedule:
    """A schedule by name, or the function itself.

    Raises:
        ConfigError: there is none of this name.
    """
    if callable(chosen):
        return chosen
    if chosen not in SCHEDULES:
        raise ConfigError(f"one of {', '.join(SCHEDULES)} or a function is needed", path="schedule", value=chosen)
    return SCHEDULES[chosen]
