"""Learning from preferences: of two answers, the better one becomes more probable."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError, ShapeError


def token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """How probable each token was, [B, L, V] and [B, L] -> [B, L]."""
    return logits.log_softmax(-1).gather(-1, ids.long().unsqueeze(-1)).squeeze(-1)


class Preference(nn.Module):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

    loss = -log sigmoid(beta * ((p(y_w) - p_0(y_w)) - (p(y_l) - p_0(y_l)))), where p is the log probability of an
    answer under the policy, p_0 under the reference, a copy of the policy as it was.

    The reference takes no gradient and stays in evaluation; it shares no tensor with the policy.

    Shapes:
        preferred, rejected: [B, L] token ids -> the loss, a scalar

    Args:
        policy: a causal model, from token ids to logits.
        beta: how closely the policy is held to the reference.
        average: take the mean over the tokens of an answer for its log probability, in place of the sum.
        reference: a model to compare with; by default a copy of the policy.

    Raises:
        ConfigError: `beta` is not positive, or the reference shares parameters with the policy.
    """

    def __init__(
        self, policy: nn.Module, beta: float = 0.1, average: bool = False, reference: nn.Module | None = None
    ) -> None:
        super().__init__()
        if beta <= 0:
            raise ConfigError("must be positive", path="beta", value=beta)
        reference = copy.deepcopy(policy) if reference is None else reference
        shared = {id(p) for p in policy.parameters()} & {id(p) for p in reference.parameters()}
        if shared:
            raise ConfigError("the reference shares parameters with the policy, and would move along", path="reference")
        self.policy = policy
        self.reference = reference.requires_grad_(False).eval()
        self.beta = beta
        self.average = average

    def train(self, mode: bool = True) -> Preference:
        """Switch the policy; the reference stays in evaluation."""
        super().train(mode)
        self.reference.eval()
        return self

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters of the policy, for an optimiser."""
        return self.policy.parameters()

    def forward(
        self,
        preferred: Tensor,
        rejected: Tensor,
        preferred_counts: Tensor | None = None,
        rejected_counts: Tensor | None = None,
    ) -> Tensor:
        """The mean loss.

        Args:
            preferred: prompts with the better answers, padded on the right.
            rejected: the same prompts with the others.
            preferred_counts: [B, L] bool, True at the tokens of the answer; all by default.
            rejected_counts: the same for the others.
        """
        with torch.no_grad():
            reference = self._margin(self.reference, preferred, rejected, preferred_counts, rejected_counts)
        policy = self._margin(self.policy, preferred, rejected, preferred_counts, rejected_counts)
        return -F.logsigmoid(self.beta * (policy - reference)).mean()

    def _margin(
        self, model: nn.Module, better: Tensor, worse: Tensor, better_counts: Tensor | None, worse_counts: Tensor | None
    ) -> Tensor:
        return self._answer(model, better, better_counts) - self._answer(model, worse, worse_counts)

    def _answer(self, model: nn.Module, ids: Tensor, counts: Tensor | None) -> Tensor:
        """The log probability of each row, [B]."""
        if ids.dim() != 2 or ids.shape[1] < 2:
            raise ShapeError(f"rows of at least two tokens are needed, [batch, length]; got {list(ids.shape)}")
        found = token_log_probs(model(ids[:, :-1]), ids[:, 1:])
        if counts is None:
            return found.mean(1) if self.average else found.sum(1)
        if counts.dtype != torch.bool or counts.shape != ids.shape:
            raise ShapeError(f"which tokens count is told by a bool tensor {list(ids.shape)}, not {list(counts.shape)}")
        counts = counts[:, 1:]  # the first token is not predicted
        total = torch.where(counts, found, 0.0).sum(1)
        return total / counts.sum(1).clamp(min=1) if self.average else total
