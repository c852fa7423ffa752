"""Orthoformer: attention by way of a few queries that are most unlike one another."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.part import Can
from variform.core.registry import register
from variform.ops.exact import exact_attention
from variform.ops.landmarks import kmeans, orthogonal, pick, spread
from variform.ops.ranks import front
from variform.parts.kinds import Attention, Sides

ROUNDS = 6
"""Rounds of k-means."""


@register("orthoformer")
class OrthoformerAttention(Attention):
    """Orthoformer attention (Motionformer, Patrick et al. 2021, arXiv:2106.05392) through landmarks L.

    softmax(Q L^T / sqrt(D)) (softmax(L K^T / sqrt(D)) V). At most `landmarks` keys are softmax attention itself. What
    is drawn at random is drawn from torch's generator in training, and evenly spread in eval, so that a model gives
    the same each time. A row without a real key gives zeros. There is no causal form: landmarks are chosen among all.

    Shapes:
        q: [B, H, Lq, D], k: [B, Hk, Lk, D], v: [B, Hk, Lk, Dv] -> [B, H, Lq, Dv]

    Args:
        landmarks: how many landmarks there are.
        selection: "orthogonal": beginning with the first query, each time the one whose largest |cosine| to those
            chosen already is the smallest; "kmeans" or "kmeans_spherical": cluster means of the queries, or of their
            directions; "random": half of them queries, half of them keys.
        subsample: the share of the queries among which all but "random" look, never fewer than `landmarks`.
        dropout: probability of zeroing a number of the result, in training.
    """

    can: ClassVar[Can] = Can(causal=False, attention_mask=False, packed=False, decode=False)

    def __init__(
        self,
        landmarks: Annotated[int, Field(gt=0)] = 32,
        selection: Literal["orthogonal", "kmeans", "kmeans_spherical", "random"] = "orthogonal",
        subsample: Annotated[float, Field(gt=0, le=1)] = 1.0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.selection = selection
        self.subsample = subsample
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        """Attend by way of the landmarks."""
        if k.shape[2] <= self.landmarks:
            if sides.q_valid is not None:
                q = q.masked_fill(~sides.q_valid[:, None, :, None], 0)  # padding may hold anything
            y = exact_attention(q, k, v, sides.k_valid)
        else:
            y = self._through_landmarks(q, k, v, sides)
        return F.dropout(y, self.dropout) if self.training and self.dropout else y

    def _through_landmarks(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        n, groups = self.landmarks, q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        asking = None if sides.q_valid is None else front(sides.q_valid)
        own = None if sides.k_valid is None else front(sides.k_valid)
        if asking is not None:
            q = asking.gather(q)
        if own is not None:
            k, v = own.gather(k), own.gather(v)
        q_count = _full(q) if asking is None else asking.count
        k_count = _full(k) if own is None else own.count
        landmarks, held = self._landmarks(q, k, q_count, k_count)
        inner = exact_attention(landmarks, k, v, None if own is None else own.real)
        y = exact_attention(q, landmarks, inner, held)
        if own is not None:  # rows of few tokens are softmax attention, as they are on their own
            exact = exact_attention(q, k[:, :, :n], v[:, :, :n], own.real[:, :n])
            y = torch.where((own.count <= n)[:, None, None, None], exact, y)
        return y if asking is None else asking.restore(y)

    def _landmarks(self, q: Tensor, k: Tensor, q_count: Tensor, k_count: Tensor) -> tuple[Tensor, Tensor]:
        """The landmarks [B, H, n, D], and which of them a row has, [B, n]."""
        if self.selection == "random":
            of_q, q_held = self._some(q, q_count, self.landmarks // 2)
            of_k, k_held = self._some(k, k_count, self.landmarks - self.landmarks // 2)
            return torch.cat((of_q, of_k), 2), torch.cat((q_held, k_held), 1)
        n = min(self.landmarks, q.shape[2])
        if self.subsample < 1:
            share = (self.subsample * q_count.double()).long().clamp(min=n).minimum(q_count)
            ranks = spread(q_count, share, max(n, int(self.subsample * q.shape[2])), q.shape[2], self.training)
            q, q_count = pick(q, ranks), share
        real = _real(q, q_count)
        if self.selection == "orthogonal":
            return pick(q, orthogonal(q, n, real)), real[:, :n]
        start = spread(q_count, q_count.clamp(max=n), n, q.shape[2], self.training)
        return kmeans(q, start, real, ROUNDS, self.selection == "kmeans_spherical"), real[:, :n]

    def _some(self, x: Tensor, count: Tensor, most: int) -> tuple[Tensor, Tensor]:
        most = min(most, x.shape[2])
        found = pick(x, spread(count, count.clamp(max=most), most, x.shape[2], self.training))
        return found, _real(found, count)


def _real(x: Tensor, count: Tensor) -> Tensor:
    return torch.arange(x.shape[2], device=x.device) < count[:, None]


def _full(x: Tensor) -> Tensor:
    return torch.full((x.shape[0],), x.shape[2], dtype=torch.long, device=x.device)
