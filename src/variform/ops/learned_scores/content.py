"""Positions counted by what queries and keys hold, and keys that earlier queries hide."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from variform.ops.blend import blend
from variform.ops.learned_scores.changing import Changing
from variform.ops.learned_scores.forgetting import from_the_right
from variform.ops.learned_scores.heads import mixed_heads, square
from variform.ops.scores import Additive, ScoreFunction, ScoreMod, by_row, position_at


@dataclass(frozen=True, eq=False)
class DistanceCurves(Additive):
    """Every query has a curve over distances to the past: S_ij += (weights_i bank)[i - j] for 0 <= i - j < D.

    Shapes: weights `[B, H, Lq, K]`, bank `[K, D]`.
    """

    weights: Tensor
    bank: Tensor

    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        curves = self.weights @ self.bank
        last = curves.shape[-1] - 1
        q, k = by_row(q_pos), by_row(k_pos)
        distance = (q[:, None, :, None] - k[:, None, None, :]).expand(*curves.shape[:-1], k.shape[-1])
        bias = curves.gather(-1, distance.clamp(0, last))
        return bias.masked_fill((distance < 0) | (distance > last), 0.0)

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        curves = self.weights @ self.bank
        last = curves.shape[-1] - 1

        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            distance = position_at(q_pos, b, q_idx) - position_at(k_pos, b, kv_idx)
            bias = curves[b, h, q_idx, distance.clamp(0, last)]
            return score + torch.where((distance < 0) | (distance > last), 0.0, bias)

        return mod

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return DistanceCurves(self.weights[..., rows, :], self.bank)

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        return 2 * batch * heads * q_len * self.bank.numel()


@dataclass(frozen=True, eq=False)
class ContextualBias(Changing):
    """Positions counted by content (CoPE): p_ij = sum of sigmoid(S_it) over seen t >= j, S_ij += curve_i(p_ij).

    Args:
        curves: `[B, H, Lq, P]`, a query's bias at each whole position; between them linear.
        mixing: `[H, H]`, heads mix the scores before the gates; None for none.
        temperature: where given, the bias is an average weighted by softmax(-|p - n| / temperature) in place of the
            linear one.

    Paper: https://arxiv.org/abs/2405.18719
    """

    curves: Tensor
    mixing: Tensor | None = None
    temperature: float | None = None

    @property
    def is_late(self) -> bool:
        return True

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        gates = (scores if self.mixing is None else mixed_heads(scores, self.mixing)).sigmoid()
        if seen is not None:
            gates = gates.masked_fill(~seen, 0.0)
        last = self.curves.shape[-1] - 1
        place = from_the_right(gates).clamp(max=last)
        if self.temperature is not None:
            whole = torch.arange(last + 1, device=place.device, dtype=place.dtype)
            share = torch.softmax(-(place.unsqueeze(-1) - whole).abs() / self.temperature, -1)
            return scores + torch.einsum("bhijp,bhip->bhij", share, self.curves.to(share.dtype))
        below = place.detach().floor()
        low = self.curves.gather(-1, below.long())
        high = self.curves.gather(-1, place.detach().ceil().long())
        return scores + blend(low, high, place - below)

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return replace(self, curves=self.curves[..., rows, :])

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        pairs = 2 * batch * heads * q_len * k_len
        mixing = 0 if self.mixing is None else pairs * heads
        return mixing + (0 if self.temperature is None else pairs * self.curves.shape[-1])

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        if self.mixing is not None:
            square("ContextualBias(mixing)", self.mixing, heads)


@dataclass(frozen=True, eq=False)
class Suppression(Changing):
    """Earlier queries hide keys from later ones (selective attention): S_ij -= sum over i' < i of relu(S0_i'j).

    S0 are the scores of the first head, at pairs that may attend and are not `exempt`. Queries stand in order.

    Args:
        exempt: bool `[B|1, Lq, Lk]`: pairs that hide nothing (a query's own token, the first token, padded queries).
        before: `[B, Lk]`, what earlier calls have summed up; None for nothing.
        total: where the sum after this call is put, for the next one.
        front: keys in front of the sequence, which are never hidden.

    Paper: https://arxiv.org/abs/2410.02703
    """

    exempt: Tensor
    before: Tensor | None = None
    total: list[Tensor] = field(default_factory=list)
    front: int = 0

    @property
    def is_late(self) -> bool:
        return True

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        gates = scores[:, 0, :, self.front :].relu()
        if seen is not None:
            seen = seen if seen.dim() == 2 else seen[:, 0]
            gates = gates.masked_fill(~seen[..., self.front :], 0.0)
        gates = gates.masked_fill(self.exempt, 0.0)
        hidden = gates.cumsum(-2)
        start = 0.0 if self.before is None else self.before.unsqueeze(1)
        self.total.append((hidden[:, -1:] + start).squeeze(1))
        hidden = functional.pad(hidden[:, :-1], (0, 0, 1, 0)) + start
        return scores - functional.pad(hidden, (self.front, 0)).unsqueeze(1)

    def behind(self, count: int, q_pos: Tensor, k_pos: Tensor) -> ScoreMod:
        return replace(self, front=self.front + count)
