"""Attention scores that are not computed yet: what a program passes on where they end in one weighted sum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from variform.errors import ShapeError
from variform.ops.attention.offset import attend_offset

__all__ = ["PendingScores", "trimmed"]


@dataclass(frozen=True)
class PendingScores:
    """Scores as a description: scale q k^T, and what is done to them, in order.

    It stands in for a tensor [B, H, Lq, Lk] of which only the shape is needed until values are weighed.

    Args:
        q: queries, [B, H, Lq, D].
        k: keys, [B, H, Lk, D].
        scale: of the dot products.
        changes: each a factor b (None for 1) and an offset O: S becomes b S + O.
    """

    q: Tensor
    k: Tensor
    scale: float
    changes: tuple[tuple[Tensor | None, Tensor], ...] = ()

    @property
    def shape(self) -> torch.Size:
        """[B, H, Lq, Lk]."""
        return torch.Size((*self.q.shape[:3], self.k.shape[2]))

    def trim_and_add(self, offset: Tensor, factor: Tensor | None) -> PendingScores:
        """b S + O, with an offset that may be larger than the scores.

        Raises:
            ShapeError: the offset is too small, or for another batch.
        """
        trimmed(offset, self.shape)  # refused here and not where the values are weighed
        return replace(self, changes=(*self.changes, (factor, offset)))

    def add(self, other: Tensor) -> PendingScores | Tensor:
        """S + O, with an offset that broadcasts to the scores; the scores themselves where they would grow."""
        if torch.broadcast_shapes(other.shape, self.shape) != self.shape:  # type: ignore[no-untyped-call]
            return self.computed() + other
        return replace(self, changes=(*self.changes, (None, other)))

    def computed(self) -> Tensor:
        """The scores as a tensor."""
        scores = torch.matmul(self.q, self.k.transpose(-1, -2)) * self.scale
        for factor, offset in self.changes:
            scores = (scores if factor is None else factor * scores) + self._cut(offset)
        return scores

    def weigh(self, v: Tensor, causal: bool) -> Tensor:
        """softmax(S) v, fused; rows that -inf masks throughout are zeros.

        Shapes:
            v: [B, H, Lk, Dv] -> [B, H, Lq, Dv]

        Args:
            v: the values.
            causal: query i sees keys <= i only.
        """
        q, total = self.q, None
        for factor, offset in self.changes:
            if factor is not None:
                q = factor * q
                total = None if total is None else factor * total
            cut = self._cut(offset)
            total = cut if total is None else total + cut
        source = self.changes[0][1] if len(self.changes) == 1 else None
        return attend_offset(q, self.k, v, total, self.scale, causal, source)

    def _cut(self, offset: Tensor) -> Tensor:
        """The part that the scores need, with four sizes of which the last two are theirs."""
        queries, keys = self.shape[2:]
        offset = offset[(None,) * (4 - offset.dim())]
        rows = slice(None) if offset.shape[2] == 1 else slice(queries)
        columns = slice(None) if offset.shape[3] == 1 else slice(keys)
        return offset[:, :, rows, columns].expand(-1, -1, queries, keys)


def trimmed(offset: Tensor, scores: torch.Size) -> Tensor:
    """The part of an offset that scores of this shape need.

    Raises:
        ShapeError: it is too small, or for another batch.
    """
    queries, keys = scores[-2:]
    if offset.shape[-2] < queries or offset.shape[-1] < keys:
        raise ShapeError(
            f"the offset covers {list(offset.shape[-2:])} positions, and the scores have {[queries, keys]}: "
            "make it longer"
        )
    if offset.shape[0] not in (1, scores[0]):
        raise ShapeError(f"the offset's batch size is {offset.shape[0]}; it must be 1 or {scores[0]}")
    return offset[:, :, :queries, :keys]
