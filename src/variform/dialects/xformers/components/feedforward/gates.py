"""Gates: which experts a token visits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from variform.ops.experts import load_balance, router_logits, router_z
from variform.parts.feedforward.expert_choice import chosen_rows


@dataclass(frozen=True)
class Routed:
    """What a gate decided for T tokens.

    Args:
        weight: of each visit, as `index` or `rows`.
        index: [T, k], the experts of each token; their number stands for none.
        rows: [experts * n], the tokens of each expert, expert by expert.
        balance: the load-balancing loss.
        z: the z-loss.
    """

    weight: Tensor
    balance: Tensor
    z: Tensor
    index: Tensor | None = None
    rows: Tensor | None = None


class TopGate(nn.Module):
    """The k most likely experts of each token; see the native `mixture_of_experts`.

    Args:
        model_dim: features.
        num_experts: how many experts there are.
        k: how many of them a token visits.
    """

    def __init__(self, model_dim: int, num_experts: int, k: int) -> None:
        super().__init__()
        self.wg = nn.Linear(model_dim, num_experts, bias=False)
        self.k = k

    def route(self, x: Tensor, valid: Tensor | None, group: Any) -> Routed:
        """Choose for [B, S, model_dim]."""
        logits = router_logits(x, self.wg.weight)
        chance = logits.softmax(-1)
        weight, index = chance.topk(min(self.k, chance.shape[-1]), -1)
        if self.k > 1:
            weight = weight / weight.sum(-1, keepdim=True)
        if valid is not None:
            index = torch.where(valid.unsqueeze(-1), index, chance.shape[-1])
        balance, z = load_balance(chance, index, valid, group), router_z(logits, valid, group)
        return Routed(weight.flatten(0, 1), balance, z, index=index.flatten(0, 1))


class Top1Gate(TopGate):
    """Switch's gate (arXiv:2101.03961): one expert, weighted by its probability."""

    def __init__(self, model_dim: int, num_experts: int) -> None:
        super().__init__(model_dim, num_experts, 1)


class Top2Gate(TopGate):
    """GShard's gate (arXiv:2006.16668): two experts, whose weights sum to 1; without its capacity."""

    def __init__(self, model_dim: int, num_experts: int) -> None:
        super().__init__(model_dim, num_experts, 2)


class ExpertChoiceGate(nn.Module):
    """Experts choose tokens (arXiv:2202.09368); see the native `expert_choice`.

    Args:
        model_dim: features.
        num_experts: how many experts there are.
        capacity: how many experts take a token on average.
    """

    def __init__(self, model_dim: int, num_experts: int, capacity: float = 2.0) -> None:
        super().__init__()
        self.wg = nn.Linear(model_dim, num_experts, bias=False)
        self.capacity = min(capacity, float(num_experts))

    def route(self, x: Tensor, valid: Tensor | None, group: Any) -> Routed:
        """Choose for [B, S, model_dim]."""
        logits = router_logits(x, self.wg.weight)
        rows, weight = chosen_rows(logits.softmax(-1), self.capacity, valid)
        z = router_z(logits, valid, group)
        return Routed(weight, torch.zeros_like(z), z, rows=rows)


class RoundRobinGate(nn.Module):
    """Experts take turns: token s of a sequence visits expert s modulo their number, with weight 1.

    Args:
        model_dim: features.
        num_experts: how many experts there are.
    """

    def __init__(self, model_dim: int, num_experts: int) -> None:
        super().__init__()
        self.model_dim = model_dim
        self.num_experts = num_experts

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In GShard's form: loss, combining weights [T, experts, capacity] and their mask, for [T, model_dim]."""
        count = input.shape[0]
        token = torch.arange(count, device=input.device)
        combine = input.new_zeros(count, self.num_experts, math.ceil(count / self.num_experts))
        combine[token, token % self.num_experts, token // self.num_experts] = 1
        return input.new_zeros(()), combine, combine.bool()

    def route(self, x: Tensor, valid: Tensor | None, group: Any) -> Routed:
        """Choose for [B, S, model_dim]; padding does not count."""
        batch, length = x.shape[:2]
        place = torch.arange(length, device=x.device).expand(batch, length)
        if valid is not None:
            place = valid.long().cumsum(1) - 1
        index = place % self.num_experts
        if valid is not None:
            index = torch.where(valid, index, self.num_experts)
        zero = x.new_zeros(())
        return Routed(x.new_ones(batch * length, 1), zero, zero, index=index.reshape(-1, 1))
