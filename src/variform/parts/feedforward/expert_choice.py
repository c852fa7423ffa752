"""Mixture of experts in which the experts choose their tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.ops.experts import router_logits, router_z, run_sorted
from variform.parts.feedforward.mixture_of_experts import experts_problems, refuse_competition, row_share
from variform.parts.kinds import FeedForward, Output, Streams, call
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("expert_choice")
class ExpertChoice(FeedForward):
    """Each expert takes the tokens of a row that want it most (Zhou et al. 2022, arXiv:2202.09368).

    p = softmax(x W_r) over experts; expert i takes the ceil(capacity * tokens / experts) tokens with the largest p_i;
    y = sum over the experts i that took the token of p_i expert_i(x). All experts have equal work, and a token may be
    taken by several or by none. Which tokens are taken depends on later ones: there is no causal form. Padding takes
    no place. Where a caller asks for losses, each use publishes `router_z` (arXiv:2202.08906).

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        experts: the feedforwards, which treat each token on its own.
        capacity: how many experts take a token on average.
        jitter: what the router sees is multiplied with noise in [1 - jitter, 1 + jitter], in training.
        common: a feedforward that every token visits beside them (DeepSeekMoE, arXiv:2401.06066).
        dim: features in and out.
        init_std: standard deviation of the router's initial weights; torch's default when None.
    """

    can: ClassVar[Can] = Can(False, True, False, False, True, True, False)
    reads: ClassVar[frozenset[str]] = frozenset({"valid", "segments", "mask", "losses"})

    def __init__(
        self,
        experts: Sequence[FeedForward],
        capacity: Annotated[float, Field(gt=0)] = 2.0,
        jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        common: FeedForward | None = None,
        dim: Size = INHERIT,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.router = Linear(dim, len(experts), bias=False, std=init_std)
        self.experts = nn.ModuleList(experts)
        self.common = common
        self.capacity = capacity
        self.jitter = jitter
        self.group: Any = None  # the processes that the experts are spread over: see `variform.train.experts`

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """A token is taken by each expert once at most."""
        problems, count = experts_problems(facts), len(facts["experts"])
        if facts["capacity"] > count > 0:
            message = f"{count} experts cannot take a token more than {count} times"
            problems.append(Problem("capacity", message, facts["capacity"]))
        return problems

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Let the experts choose."""
        refuse_competition(streams)
        valid = streams.get("valid")
        if valid is not None:
            x = torch.where(valid.unsqueeze(-1), x, 0)
        logits = router_logits(x, self.router.weight, self.jitter if self.training else 0.0)
        chance = logits.softmax(-1)
        rows, weight = chosen_rows(chance, self.capacity, valid)
        count = len(self.experts)
        flat = x.flatten(0, 1)
        out = run_sorted(flat[rows], [rows.numel() // count] * count, self._run, self.group)
        weighted = out * weight.to(out.dtype).unsqueeze(-1)
        y = out.new_zeros(flat.shape).index_add(0, rows, weighted).view_as(x)
        if self.common is not None:
            y = y + call(self.common, x, {}, "common", {})
        told = streams.get("losses")
        return y if told is None else (y, {"losses": (*told, ("router_z", router_z(logits, valid, self.group)))})

    def _run(self, number: int, x: Tensor) -> Tensor:
        y: Tensor = self.experts[number](x, {})
        return y


def chosen_rows(chance: Tensor, capacity: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tokens that experts choose, expert by expert, as places in [B L], and their weights; both [E B n].

    Args:
        chance: [B, L, E], the probabilities of experts for each token.
        capacity: how many experts take a token on average.
        valid: [B, L] bool, False at padding. Rows with more of it leave places of experts over: they have weight 0.
    """
    batch, length, count = chance.shape
    rank = chance if valid is None else torch.where(valid.unsqueeze(-1), chance, -1)
    most = min(length, math.ceil(capacity * length / count))
    # A stable order: equal tokens are taken by their places, with padding and without.
    order = torch.sort(rank.detach(), stable=True, dim=1, descending=True).indices[:, :most]  # [B, n, E]
    weight = chance.gather(1, order)
    if valid is not None:
        limit = row_share(capacity, length, count, valid, order)
        taken = torch.arange(most, device=order.device).view(1, -1) < torch.minimum(limit, valid.sum(1, keepdim=True))
        weight = torch.where(taken.unsqueeze(-1), weight, 0)
    rows = order + length * torch.arange(batch, device=order.device).view(-1, 1, 1)
    return rows.permute(2, 0, 1).flatten(), weight.permute(2, 0, 1).flatten()
