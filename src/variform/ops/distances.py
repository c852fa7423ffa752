"""A bias that is a function of the distance, known by being called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from variform.ops.attention.meter import apart_from_attention, is_metered
from variform.ops.scores import ScoreFunction, ScoreMod, by_row

__all__ = ["DistanceBias"]


@dataclass(frozen=True, eq=False)
class DistanceBias(ScoreMod):
    """S += f(q - k)[h], f a function of signed distances that is dear to call for every pair.

    It is called once for each distance between 0..Lq-1 and 0..Lk-1 where both sides count so, once for each distance in
    the range of given positions where their values may be looked at, and for every pair in compiled graphs.

    Args:
        function: from distances [n], integers, to [n, H].
    """

    function: Callable[[Tensor], Tensor]

    @property
    def is_relative(self) -> bool:
        return True

    @property
    def is_pointwise(self) -> bool:
        return False

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return scores + self.additive(q_pos, k_pos, scores.dtype)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor:
        q, k = by_row(q_pos), by_row(k_pos)
        distance = q[:, :, None] - k[:, None, :]
        hidden = isinstance(distance, FakeTensor) or torch.compiler.is_compiling()
        if hidden or distance.numel() <= distance.shape[1] + distance.shape[2]:
            return self._laid_out(distance.flatten(), torch.arange(distance.numel(), device=q.device), distance, dtype)
        low, high = (int(end) for end in distance.aminmax())
        if high - low >= distance.numel():
            return self._laid_out(distance.flatten(), torch.arange(distance.numel(), device=q.device), distance, dtype)
        return self._laid_out(torch.arange(low, high + 1, device=q.device), distance - low, distance, dtype)

    def aligned(self, q_len: int, k_len: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        distances = torch.arange(1 - k_len, q_len, device=device)
        steps = torch.arange(q_len, device=device)[:, None] - torch.arange(k_len, device=device)
        return self._laid_out(distances, steps + (k_len - 1), steps[None], dtype)

    def _laid_out(self, distances: Tensor, index: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
        """The table of some distances, read at the index of every pair: [B|1, H, Lq, Lk]."""
        if is_metered():
            with apart_from_attention():  # products of its own, which the attention does not account for
                table = self.function(distances)
        else:
            table = self.function(distances)
        return table[index.view(like.shape)].permute(0, 3, 1, 2).to(dtype)

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return self

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction | None:
        """None: how many distances there are is not known here."""
        return None
