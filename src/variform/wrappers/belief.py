"""Two models that read a text from either side, and together tell what stands between what they have read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError, ShapeError
from variform.parts.kinds import State
from variform.parts.linear import Linear
from variform.wrappers.rollouts import checked_ids, checked_model

PairWeights = Callable[[Tensor], Tensor]
"""From pairs (i, j), [N, 2], to their weights [N], or [N, 2] for the next and the previous token."""


def turned(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The last first, [B, L, ..]; of rows padded on the right, padding stays where it is."""
    if lengths is None:
        return x.flip(1)
    places = torch.arange(x.shape[1], device=x.device)
    back = lengths.unsqueeze(1) - 1 - places
    back = torch.where(back >= 0, back, places)
    return x.gather(1, back.view(*back.shape, *(1,) * (x.dim() - 2)).expand(*back.shape, *x.shape[2:]))


def pairs_of(length: int, device: torch.device | None = None) -> Tensor:
    """All (i, j) with j >= i + 2 and j <= length: what was read to i, and from j on; [N, 2]."""
    places = torch.arange(length + 1, device=device)
    pairs = torch.cartesian_prod(places[:-1], places)
    return pairs[pairs[:, 1] - pairs[:, 0] >= 2]


def two_maps(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """W2 LeakyReLU(W1 x + b1) + b2."""
    return nn.Sequential(Linear(inputs, hidden), nn.LeakyReLU(), Linear(hidden, outputs))


class BeliefState(nn.Module):
    """A belief state transformer (Hu et al. 2024, arXiv:2410.23506).

    f_i is the state of a model that has read tokens 0 .. i; b_j that of a second one, which has read a suffix token
    and then tokens L - 1 .. j (b_L the suffix token alone). From [f_i, b_j] with j >= i + 2 a head tells token i + 1
    and token j - 1: loss = mean over pairs of the cross entropies of both.

    Shapes:
        ids: [B, L] -> the loss, a scalar

    Args:
        forward_model: a causal model of the core.
        backward_model: another with a prefix (its embedding is `prefixed`); by default the same one.
        head: from 2 dim features to the logits of the next and of the previous token, 2 V; two maps by default.
        share: which part of the pairs is trained on in each step, evenly drawn.
        backward_weight: of the previous tokens' cross entropies.
        distances: how many distances j - i are told apart, and predicted beside the tokens; None for none.
        distance_weight: of their cross entropy.
        told: how often pairs are told their distance, in training, when nothing is predicted of it; None for never.

    Raises:
        ConfigError: models that do not go together, or values that do not fit.
    """

    def __init__(
        self,
        forward_model: nn.Module,
        backward_model: nn.Module | None = None,
        head: nn.Module | None = None,
        share: float = 1.0,
        backward_weight: float = 1.0,
        distances: int | None = None,
        distance_weight: float = 1.0,
        told: float | None = None,
    ) -> None:
        super().__init__()
        self.ahead = checked_model(forward_model)
        self.back = self.ahead if backward_model is None else checked_model(backward_model)
        for name in ("dim", "vocab_size"):
            sizes = [getattr(model, name) for model in (self.ahead, self.back)]
            if sizes[0] != sizes[1]:
                message = f"both models need the same {name}, and have {sizes[0]} and {sizes[1]}"
                raise ConfigError(message, path="backward_model")
        if not 0 < share <= 1:
            raise ConfigError("a part in (0, 1] is needed", path="share", value=share)
        if told is not None and not 0 < told < 1:
            raise ConfigError("a probability in (0, 1) is needed", path="told", value=told)
        dim = self.ahead.dim
        assert self.ahead.vocab_size is not None
        self.suffix = nn.Parameter(torch.randn(dim) * 0.02)
        self.head: nn.Module = head or two_maps(2 * dim, dim, 2 * self.ahead.vocab_size)
        self.distance_head = None if distances is None else two_maps(2 * dim, dim, distances)
        self.distance_gains = None if told is None else two_maps(1, dim, 2 * dim)
        self.share = share
        self.backward_weight = backward_weight
        self.distances = distances
        self.distance_weight = distance_weight
        self.told = told

    def forward(self, ids: Tensor, lengths: Tensor | None = None, weights: PairWeights | None = None) -> Tensor:
        """The loss.

        Args:
            ids: token ids.
            lengths: [B] real tokens of rows padded on the right.
            weights: factors of the pairs' cross entropies.
        """
        checked_ids(ids, 2)
        rows, length = ids.shape
        if lengths is not None:
            ids = ids.masked_fill(torch.arange(length, device=ids.device) >= lengths.unsqueeze(1), 0)
        ahead, back = self.states(ids, lengths)
        pairs = pairs_of(length, ids.device)
        if self.share < 1:
            kept = max(int(len(pairs) * self.share), 1)
            pairs = pairs[torch.randperm(len(pairs), device=ids.device)[:kept]]
        i, j = pairs.unbind(-1)
        counted = torch.ones(rows, len(pairs), dtype=torch.bool, device=ids.device)
        if lengths is not None:
            counted = j <= lengths.unsqueeze(1)
        features = torch.cat((ahead[:, i], back[:, j]), -1)
        tells = self.told is not None and self.training and bool(torch.rand(()) < self.told)
        logits = self.head(self._knowing(features, j - i) if tells else features)
        labels = torch.stack((ids[:, i + 1], ids[:, j - 1]), -1).long()
        each = F.cross_entropy(logits.unflatten(-1, (2, -1)).permute(0, 3, 1, 2), labels, reduction="none")
        if self.backward_weight != 1.0:
            each = each * each.new_tensor([1.0, self.backward_weight])
        if weights is not None:
            each = each * _fitting(weights(pairs), pairs)
        loss = _mean(each.mean(-1), counted)
        if self.distance_head is not None and self.distances is not None and not tells:
            apart = (j - i).clamp(max=self.distances - 1).expand(rows, -1)
            found = F.cross_entropy(self.distance_head(features).transpose(1, 2), apart, reduction="none")
            loss = loss + self.distance_weight * _mean(found, counted)
        return loss

    def states(self, ids: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f and b: [B, L, dim], [B, L + 1, dim]."""
        ahead = self.ahead(ids, hidden=True)
        back = self.back(turned(ids, lengths), hidden=True, prefix=self.first(len(ids)))
        return ahead, turned(back, None if lengths is None else lengths + 1)

    def first(self, rows: int) -> Tensor:
        """The suffix token, with which reading backwards begins: [B, 1, dim]."""
        return self.suffix.expand(rows, 1, -1)

    def goal(self, suffix: Tensor | None, rows: int) -> Tensor:
        """The state of the second model before a suffix [B, n], or before the end: [B, dim]."""
        # A causal model: what stands behind the suffix token changes nothing at it.
        ids = torch.zeros(rows, 1, dtype=torch.long, device=self.suffix.device) if suffix is None else suffix.flip(1)
        hidden: Tensor = self.back(ids, hidden=True, prefix=self.first(rows))
        return hidden[:, 0] if suffix is None else hidden[:, -1]

    def decoder(self, other: Tensor, backwards: bool = False) -> Continuation:
        """A language model for `vf.generate` that goes on with a text, given the state of the other side [B, dim].

        Args:
            other: `goal(...)`; of texts that are written backwards, a state of the first model.
            backwards: write what stands before. The prefix of such a text is `first(rows)`.
        """
        return Continuation(self.back if backwards else self.ahead, self.head, other, backwards)

    def _knowing(self, features: Tensor, distances: Tensor) -> Tensor:
        assert self.distance_gains is not None
        gains: Tensor = self.distance_gains(distances.unsqueeze(-1).to(features.dtype))
        return features * gains


class Continuation(nn.Module):
    """One of the two models as a language model: its state beside a fixed one of the other side.

    Shapes:
        ids: [B, L] -> [B, L, V]; with a state, (that, new state)
    """

    def __init__(self, model: nn.Module, head: nn.Module, other: Tensor, backwards: bool) -> None:
        super().__init__()
        self.model = model
        self.two = head
        self.other = other.unsqueeze(1)
        self.backwards = backwards

    @property
    def vocab_size(self) -> int | None:
        """The number of different tokens."""
        return getattr(self.model, "vocab_size", None)

    @property
    def max_seq_len(self) -> int | None:
        """The longest text."""
        return getattr(self.model, "max_seq_len", None)

    def forward(self, ids: Tensor, *, state: State | None = None, **streams: Any) -> Any:
        """The logits of the next tokens, or of the previous ones."""
        out = self.model(ids, state=state, hidden=True, **streams)
        hidden, state = (out, None) if state is None else out
        other = self.other.expand(-1, hidden.shape[1], -1)
        both = torch.cat((other, hidden) if self.backwards else (hidden, other), -1)
        logits = self.two(both).chunk(2, -1)[int(self.backwards)]
        return logits if state is None else (logits, state)

    def init_state(self, batch: int, max_len: int, **options: Any) -> State:
        """An empty decode state."""
        state: State = self.model.init_state(batch, max_len, **options)  # type: ignore[operator]
        return state


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def _fitting(weights: Tensor, pairs: Tensor) -> Tensor:
    if weights.shape[:1] != pairs.shape[:1] or weights.dim() not in (1, 2) or weights.numel() % len(pairs):
        raise ShapeError(f"weights are [{len(pairs)}] or [{len(pairs)}, 2], not {list(weights.shape)}")
    return weights.unsqueeze(-1) if weights.dim() == 1 else weights
