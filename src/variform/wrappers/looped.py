"""The loss of models that run their layers several times and learn when to stop."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def exit_chances(gates: Tensor) -> Tensor:
    """With which probability a token leaves after each pass; the last pass takes all that is left.

    p_t = s(g_t) prod_{u < t} (1 - s(g_u)), s the logistic function.

    Shapes:
        gates: [B, T, L] -> [B, T, L], sums over T are 1
    """
    leave = F.logsigmoid(gates[:, :-1])
    stay = F.logsigmoid(-gates[:, :-1]).cumsum(1)
    before = F.pad(stay, (0, 0, 1, 0))
    return (F.pad(leave, (0, 0, 0, 1)) + before).exp()


def loss_of_passes(
    losses: Tensor,
    gates: Tensor,
    counted: Tensor,
    threshold: float = 0.05,
    slope: float = 50.0,
    exit_weight: float = 1.0,
) -> Tensor:
    """The loss of a looped model (Ouro, Zhu et al. 2025, arXiv:2510.25741), with its gate trained on what passes gain.

    The losses of a token are weighted with the probability of leaving after each pass, as constants; their mean is over
    tokens and passes. The gate learns to stay while the next pass lowers the loss by more than `threshold`: its target
    is s(slope (l_{t+1} - l_t + threshold)), a constant too.

    Shapes:
        losses: [B, T, L] of each token after each pass; gates: [B, T, L]; counted: [B, L] bool -> a scalar

    Args:
        losses: of each token after each pass.
        gates: logits of leaving after each pass.
        counted: which tokens count.
        threshold: what a pass must gain.
        slope: how sharply that is told.
        exit_weight: factor of the gate's loss.
    """
    weights = counted.unsqueeze(1).to(losses.dtype)
    total = counted.sum().clamp(min=1)
    passes = losses.shape[1]
    loss = (losses * exit_chances(gates).detach() * weights).sum() / (total * passes)
    if passes == 1:
        return loss
    gains = losses.detach().diff(dim=1)
    wanted = torch.sigmoid(slope * (gains + threshold))
    errors = F.binary_cross_entropy_with_logits(gates[:, :-1], wanted, reduction="none")
    return loss + exit_weight * (errors * weights).sum() / (total * (passes - 1))
