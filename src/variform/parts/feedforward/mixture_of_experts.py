"""Mixture of experts: each token goes to the experts that its router finds best."""

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
from variform.core.spec import Spec, described
from variform.errors import Problem, ShapeError
from variform.ops.experts import load_balance, router_logits, router_z, visit
from variform.parts.kinds import FeedForward, Output, Streams, call
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("mixture_of_experts")
class MixtureOfExperts(FeedForward):
    """Token-choice mixture of experts: y = sum over the k most likely experts i of g_i expert_i(x), p = softmax(x W_r).

    k = 1 is Switch (Fedus et al. 2021, arXiv:2101.03961), where g = p; k = 2 GShard (Lepikhin et al. 2020,
    arXiv:2006.16668), where the g of the chosen experts sum to 1. No token is dropped, so that each is treated on its
    own: the part is causal and decodes. Only a `capacity` makes tokens compete, and takes that away. Experts compute
    their own tokens alone; in compiled code every expert computes all tokens. Padding visits nobody.

    Two losses tell how well tokens are spread: where a caller asks for them (`model(x, losses=True)`), each use of the
    part publishes `load_balance` (Switch's, 1 when all experts are alike) and `router_z` (arXiv:2202.08906).

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        experts: the feedforwards, which treat each token on its own.
        k: how many of them a token visits.
        normalise: the weights of the chosen experts sum to 1; by default for k > 1.
        capacity: an expert takes at most ceil(capacity * k * tokens / experts) tokens of a row: first choices before
            second ones, earlier tokens first. None for no limit.
        jitter: what the router sees is multiplied with noise in [1 - jitter, 1 + jitter], in training.
        common: a feedforward that every token visits beside them (DeepSeekMoE, arXiv:2401.06066).
        dim: features in and out.
        init_std: standard deviation of the router's initial weights; torch's default when None.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"valid", "segments", "mask", "losses"})

    def __init__(
        self,
        experts: Sequence[FeedForward],
        k: Size = 2,
        normalise: bool | None = None,
        capacity: Annotated[float, Field(gt=0)] | None = None,
        jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        common: FeedForward | None = None,
        dim: Size = INHERIT,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.router = Linear(dim, len(experts), bias=False, std=init_std)
        self.experts = nn.ModuleList(experts)
        self.common = common
        self.k = k
        self.normalise = k > 1 if normalise is None else normalise
        self.capacity = capacity
        self.jitter = jitter
        self.group: Any = None  # the processes that the experts are spread over: see `variform.train.experts`

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """With a capacity tokens of a row compete."""
        return Can() if args.get("capacity") is None else Can(False, True, False, False, True, True, False)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """There are as many experts as are visited, and a router that learns."""
        count, k = len(facts["experts"]), facts["k"]
        problems = experts_problems(facts)
        if k > count:
            problems.append(Problem("k", f"there are {count} experts", k, f"at most {count}"))
        if k == 1 and facts["normalise"]:
            problems.append(Problem("normalise", "the weight of a single expert would always be 1: nothing to learn"))
        return problems

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Send each token to its experts."""
        if self.capacity is not None:
            refuse_competition(streams)
        valid = streams.get("valid")
        if valid is not None:
            x = torch.where(valid.unsqueeze(-1), x, 0)
        logits = router_logits(x, self.router.weight, self.jitter if self.training else 0.0)
        chance = logits.softmax(-1)
        weight, index = chance.topk(self.k, -1)
        if self.normalise:
            weight = weight / weight.sum(-1, keepdim=True)
        count = len(self.experts)
        if valid is not None:
            index = torch.where(valid.unsqueeze(-1), index, count)
        taken, most = index, None
        if self.capacity is not None:
            taken = self._within(index, valid)
            most = x.shape[0] * min(x.shape[1], math.ceil(self.capacity * self.k * x.shape[1] / count))
        tokens, choices, shares = (t.flatten(0, 1) for t in (x, taken, weight))
        y = visit(tokens, choices, shares, count, self._run, self.group, most).view_as(x)
        if self.common is not None:
            y = y + call(self.common, x, {}, "common", {})
        told = streams.get("losses")
        if told is None:
            return y
        balance = load_balance(chance, index, valid, self.group)
        return y, {"losses": (*told, ("load_balance", balance), ("router_z", router_z(logits, valid, self.group)))}

    def _run(self, number: int, x: Tensor) -> Tensor:
        y: Tensor = self.experts[number](x, {})
        return y

    def _within(self, index: Tensor, valid: Tensor | None) -> Tensor:
        """The choices [B, L, k] that a capacity leaves; what is dropped visits nobody."""
        assert self.capacity is not None
        count, length = len(self.experts), index.shape[1]
        in_turn = index.transpose(1, 2).flatten(1)  # first choices of all tokens, then second ones
        chosen = in_turn.unsqueeze(-1) == torch.arange(count, device=index.device)
        place = (chosen.cumsum(1) * chosen).sum(-1)  # from 1
        limit = row_share(self.capacity * self.k, length, count, valid, index)
        kept = torch.where(place <= limit, in_turn, count)
        return kept.view(index.shape[0], self.k, length).transpose(1, 2)


def row_share(factor: float, length: int, count: int, valid: Tensor | None, like: Tensor) -> Tensor:
    """ceil(factor * tokens / count) for the tokens of each row, [B, 1] or [1, 1]."""
    if valid is None:
        tokens = torch.full((1, 1), length, dtype=torch.float64, device=like.device)
    else:
        tokens = valid.sum(1, keepdim=True).double()
    return (factor * tokens / count).ceil().long()


def refuse_competition(streams: Streams) -> None:
    """Refuse streams that keep tokens of a row apart.

    Raises:
        ShapeError: documents or a mask were given.
    """
    for name in ("segments", "mask"):
        if streams.get(name) is not None:
            raise ShapeError(
                f"all tokens of a row compete for experts, which cannot honour {name!r}; "
                "mixture_of_experts without a capacity can"
            )


def experts_problems(facts: Facts) -> list[Problem]:
    """Experts get tokens without their surroundings: each must be treated on its own."""
    slots = [(f"experts.{place}", expert) for place, expert in enumerate(facts["experts"])]
    problems = [] if slots else [Problem("experts", "there is none")]
    for path, expert in (*slots, ("common", facts.get("common"))):
        inner = described(expert)
        if isinstance(inner, Spec):
            can = inner.part.abilities(inner.args)
            if not (can.causal and can.packed and can.decode and can.lengths) or inner.part.stateful:
                problems.append(Problem(path, f"{inner.kind} {inner.name!r} does not treat each token on its own"))
    return problems
