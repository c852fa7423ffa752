"""Sequences cut where a small model is surprised: tokens of bytes that need no vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.errors import ConfigError, ShapeError
from variform.generate.readers import evaluating


def entropies(logits: Tensor) -> Tensor:
    """The entropy of each distribution in nats, [.., V] -> [..]."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum(-1)


def ends_by_sum(amounts: Tensor, threshold: float) -> Tensor:
    """Where the sum of the amounts since the last end reaches the threshold: [B, L] -> [B, L] bool."""
    length = amounts.shape[1]
    sums = torch.cat((torch.zeros_like(amounts[:, :1]), amounts.cumsum(-1)), 1)
    following = torch.searchsorted(sums, sums + threshold)
    following = torch.maximum(following, torch.arange(1, length + 2, device=amounts.device))  # an end each time
    following = torch.cat((following, torch.full_like(following[:, :1], length + 1)), 1)
    ends = torch.zeros_like(following, dtype=torch.bool)
    here = torch.zeros_like(following[:, :1])
    while bool((here <= length).any()):
        here = following.gather(1, here)
        ends.scatter_(1, here, True)
    return ends[:, 1:-1]


def ends_by_size(ends: Tensor, longest: int) -> Tensor:
    """The ends, and further ones where a piece would have more than `longest` tokens: [B, L] -> [B, L] bool."""
    places = torch.arange(ends.shape[1], device=ends.device)
    begins = torch.cat((torch.ones_like(ends[:, :1]), ends[:, :-1]), 1)
    first = torch.where(begins, places, 0).cummax(-1).values
    return ends | ((places - first + 1) % longest == 0)


class EntropyTokenizer(nn.Module):
    """Cuts sequences into pieces that end where the next token is hard to tell (BLT, Pagnoni et al. 2024).

    A piece ends at token i when the entropy H(x_{i+1} | x_{<=i}) of the model reaches a threshold (arXiv:2412.09871),
    or, accumulating, when the sum of the entropies since the last end does; and at the end of the row.

    Shapes:
        ids: [B, L] token ids -> [B, N] integers, how many tokens each piece has; rows of fewer pieces end with zeros

    Args:
        model: a causal model, from ids to logits; it runs in evaluation without gradients.
        threshold: in nats.
        accumulate: add the entropies up from end to end.
        ignore_below: entropies that do not count for the sum, in nats.
        longest: the most tokens of a piece; None for no limit.

    Raises:
        ConfigError: a model that sees what comes, or values that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float,
        accumulate: bool = False,
        ignore_below: float = 0.0,
        longest: int | None = None,
    ) -> None:
        super().__init__()
        if getattr(model, "causal", True) is False:
            raise ConfigError("the next token must not be seen: causal=True is needed", path="model")
        if ignore_below > threshold:
            message = f"what is ignored must not be above the threshold, {threshold}"
            raise ConfigError(message, path="ignore_below", value=ignore_below)
        if longest is not None and longest < 1:
            raise ConfigError("must be positive", path="longest", value=longest)
        self.model = model
        self.threshold = threshold
        self.accumulate = accumulate
        self.ignore_below = ignore_below
        self.longest = longest

    @torch.no_grad()
    def ends(self, ids: Tensor, lengths: Tensor | None = None, streams: Mapping[str, Any] | None = None) -> Tensor:
        """The last tokens of pieces, [B, L] bool.

        Args:
            ids: [B, L].
            lengths: [B] real tokens of rows padded on the right.
            streams: further arguments of the model.
        """
        if ids.dim() != 2:
            raise ShapeError(f"token ids are [batch, length], not {list(ids.shape)}")
        with evaluating(self.model):
            amounts = entropies(self.model(ids, **(streams or {})))
        if self.accumulate:
            amounts = amounts.masked_fill(amounts < self.ignore_below, 0.0) if self.ignore_below > 0 else amounts
            found = ends_by_sum(amounts, self.threshold)
        else:
            found = amounts >= self.threshold
        places = torch.arange(ids.shape[1], device=ids.device)
        sizes = places.new_tensor([ids.shape[1]]) if lengths is None else lengths
        found = found | (places == sizes.unsqueeze(1) - 1)
        if self.longest is not None:
            found = ends_by_size(found, self.longest)
        return found & (places < sizes.unsqueeze(1))

    def forward(self, ids: Tensor, lengths: Tensor | None = None, streams: Mapping[str, Any] | None = None) -> Tensor:
        """How many tokens each piece has; the arguments are those of `ends`."""
        ends = self.ends(ids, lengths, streams)
        counts = ends.sum(1)
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device).expand_as(ids)
        last = torch.zeros(ids.shape[0], int(counts.max()), dtype=torch.long, device=ids.device)
        filled = torch.arange(last.shape[1], device=ids.device) < counts.unsqueeze(1)
        last[filled] = places[ends]
        before = torch.cat((torch.zeros_like(last[:, :1]), last[:, :-1]), 1)
        return torch.where(filled, last - before, 0)


def pieces(ids: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
    """One row cut into pieces of these sizes; what is beyond them is left out."""
    sizes = sizes[sizes > 0]
    return ids[: int(sizes.sum())].split(sizes.tolist()) if len(sizes) else ()  # type: ignore[no-untyped-call]
