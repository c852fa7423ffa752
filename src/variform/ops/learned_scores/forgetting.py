"""Keys that fade by gates of the tokens between."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from variform.ops.learned_scores.changing import Changing
from variform.ops.scores import Additive, Behind, ScoreFunction, ScoreMod, by_row, position_at


@dataclass(frozen=True, eq=False)
class ForgetBias(Additive):
    """Keys fade by gates of the tokens between (forgetting transformer): S_ij += sum of log f_t over j < t <= i.

    The sums are those of all tokens up to one. With `backward`, keys after the query fade by gates of their own:
    S_ij += sum of log b_t over i < t <= j.

    Shapes: queries `[B, H, Lq]`, keys `[B, H, Lk]`, backward a pair like them.
    """

    queries: Tensor
    keys: Tensor
    backward: tuple[Tensor, Tensor] | None = None

    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        past = self.queries.unsqueeze(-1) - self.keys.unsqueeze(-2)
        if self.backward is None:
            return past
        later = self.backward[1].unsqueeze(-2) - self.backward[0].unsqueeze(-1)
        return torch.where(at_or_before(q_pos, k_pos), past, later)

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            past = self.queries[b, h, q_idx] - self.keys[b, h, kv_idx]
            if self.backward is None:
                return score + past
            later = self.backward[1][b, h, kv_idx] - self.backward[0][b, h, q_idx]
            before = position_at(k_pos, b, kv_idx) <= position_at(q_pos, b, q_idx)
            return score + torch.where(before, past, later)

        return mod

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        pair = None if self.backward is None else (self.backward[0][..., rows], self.backward[1][..., columns])
        return ForgetBias(self.queries[..., rows], self.keys[..., columns], pair)


@dataclass(frozen=True, eq=False)
class ForgetSeen(Changing):
    """The same where a mask hides tokens from some queries: a query is moved by the gates of tokens that it sees alone.

    Shapes: gates `[B, H, Lk]`, the logarithms; backward like them.
    """

    gates: Tensor
    backward: Tensor | None = None

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        before = at_or_before(q_pos, k_pos)
        past = before if seen is None else before & seen
        gates = self.gates.unsqueeze(-2).masked_fill(~past, 0.0)
        bias = from_the_right(gates) - gates
        if self.backward is not None:
            later = ~before if seen is None else ~before & seen
            bias = torch.where(before, bias, self.backward.unsqueeze(-2).masked_fill(~later, 0.0).cumsum(-1))
        return scores + bias.to(scores.dtype)

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        backward = None if self.backward is None else self.backward[..., columns]
        return ForgetSeen(self.gates[..., columns], backward)

    def behind(self, count: int, q_pos: Tensor, k_pos: Tensor) -> ScoreMod:
        return Behind(self, count, q_pos, k_pos)


@dataclass(frozen=True, eq=False)
class ForgetRows(Changing):
    """Every query has gates of its own: S_ij += post * sum over j <= t < i of log sigmoid(scale g_i . h_t).

    Shapes: queries g `[B, H, Lq, d]`, keys h `[B, H, Lk, d]`.
    """

    queries: Tensor
    keys: Tensor
    post: float

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        gates = self.queries @ self.keys.transpose(-1, -2) * self.queries.shape[-1] ** -0.5
        past = ~at_or_before(k_pos, q_pos).transpose(-1, -2)
        gates = functional.logsigmoid(gates).masked_fill(~(past if seen is None else past & seen), 0.0) * self.post
        return scores + from_the_right(gates)

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return ForgetRows(self.queries[..., rows, :], self.keys[..., columns, :], self.post)

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        return 2 * batch * heads * q_len * k_len * self.queries.shape[-1]

    def behind(self, count: int, q_pos: Tensor, k_pos: Tensor) -> ScoreMod:
        return Behind(self, count, q_pos, k_pos)


def from_the_right(x: Tensor) -> Tensor:
    """Sums over the last axis from each place to the end."""
    return x.flip(-1).cumsum(-1).flip(-1)


def at_or_before(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Which keys stand at a query's position or before: bool `[B|1, 1, Lq, Lk]`."""
    q, k = by_row(q_pos), by_row(k_pos)
    return k[:, None, None, :] <= q[:, None, :, None]
