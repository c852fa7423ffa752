"""Score modifiers that depend on what the tokens hold, and on other scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from variform.errors import ShapeError
from variform.ops.scores import Behind, ScoreFunction, ScoreMod, position_at

__all__ = [
    "AddedScores",
    "ContextualBias",
    "DistanceCurves",
    "ForgetBias",
    "ForgetRows",
    "ForgetSeen",
    "ObservedScores",
    "Suppression",
    "TalkingScores",
]


class _Changing(ScoreMod):
    """A modifier that is not an added bias, and has no point-wise form."""

    @property
    def is_additive(self) -> bool:
        return False

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return self.apply_seen(scores, None, q_pos, k_pos)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> None:
        return None

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> None:
        return None


@dataclass(frozen=True, eq=False)
class TalkingScores(_Changing):
    """Heads add one another's scores (talking heads): S_h += sum_g weight[h, g] S_g.

    Shapes: weight `[H, H]`. Paper: https://arxiv.org/abs/2003.02436
    """

    weight: Tensor

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return scores + mixed_heads(scores, self.weight)

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return self

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        return 2 * batch * heads * heads * q_len * k_len

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        _square("TalkingScores(weight)", self.weight, heads)


@dataclass(frozen=True, eq=False)
class AddedScores(ScoreMod):
    """Scores given for every key of the call, those in front of the sequence included: S += tensor.

    Shapes: tensor `[B|1, H|1, Lq, Lk]`.
    """

    tensor: Tensor

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return scores + self.tensor.to(scores.dtype)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor:
        return self.tensor.to(dtype)

    def score_mod(self, q_pos: Tensor | None = None, k_pos: Tensor | None = None) -> ScoreFunction:
        rows, heads = self.tensor.shape[:2]

        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score + self.tensor[b if rows > 1 else 0, h if heads > 1 else 0, q_idx, kv_idx]

        return mod

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return AddedScores(self.tensor[..., rows, columns])

    def behind(self, count: int, q_pos: Tensor, k_pos: Tensor) -> ScoreMod:
        return self

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        shape = tuple(self.tensor.shape)
        if len(shape) != 4 or shape[2:] != (q_len, k_len) or shape[0] not in (1, batch) or shape[1] not in (1, heads):
            raise ShapeError(f"AddedScores {list(shape)} does not fit [{batch}, {heads}, {q_len}, {k_len}] exactly")


@dataclass(frozen=True, eq=False)
class ObservedScores(_Changing):
    """Changes nothing; puts the scores that it is given into `into`, before masks hide any."""

    into: list[Tensor]

    def apply_seen(self, scores: Tensor, seen: Tensor | None, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        self.into.append(scores)
        return scores


@dataclass(frozen=True, eq=False)
class ForgetBias(ScoreMod):
    """Keys fade by gates of the tokens between (forgetting transformer): S_ij += sum of log f_t over j < t <= i.

    The sums are those of all tokens up to one. With `backward`, keys after the query fade by gates of their own:
    S_ij += sum of log b_t over i < t <= j.

    Shapes: queries `[B, H, Lq]`, keys `[B, H, Lk]`, backward a pair like them.
    """

    queries: Tensor
    keys: Tensor
    backward: tuple[Tensor, Tensor] | None = None

    @property
    def is_additive(self) -> bool:
        return True

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return scores + self._bias(q_pos, k_pos).to(scores.dtype)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor:
        return self._bias(q_pos, k_pos).to(dtype)

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
class ForgetSeen(_Changing):
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
class ForgetRows(_Changing):
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


@dataclass(frozen=True, eq=False)
class DistanceCurves(ScoreMod):
    """Every query has a curve over distances to the past: S_ij += (weights_i bank)[i - j] for 0 <= i - j < D.

    Shapes: weights `[B, H, Lq, K]`, bank `[K, D]`.
    """

    weights: Tensor
    bank: Tensor

    def apply(self, scores: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return scores + self._bias(q_pos, k_pos).to(scores.dtype)

    def additive(self, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor:
        return self._bias(q_pos, k_pos).to(dtype)

    def _bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        curves = self.weights @ self.bank
        last = curves.shape[-1] - 1
        q = q_pos[None] if q_pos.dim() == 1 else q_pos
        k = k_pos[None] if k_pos.dim() == 1 else k_pos
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
class ContextualBias(_Changing):
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
            return scores + torch.einsum("bhijp,bhip->bhij", share, self.curves)
        below = place.detach().floor()
        low = self.curves.gather(-1, below.long())
        high = self.curves.gather(-1, place.detach().ceil().long())
        return scores + torch.lerp(low, high, place - below)

    def cut(self, rows: slice, columns: slice) -> ScoreMod:
        return replace(self, curves=self.curves[..., rows, :])

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        pairs = 2 * batch * heads * q_len * k_len
        mixing = 0 if self.mixing is None else pairs * heads
        return mixing + (0 if self.temperature is None else pairs * self.curves.shape[-1])

    def check(self, batch: int, heads: int, q_len: int, k_len: int) -> None:
        if self.mixing is not None:
            _square("ContextualBias(mixing)", self.mixing, heads)


@dataclass(frozen=True, eq=False)
class Suppression(_Changing):
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


def mixed_heads(scores: Tensor, weight: Tensor) -> Tensor:
    """Sums over heads: out_h = sum_g weight[h, g] scores_g.

    Shapes: scores `[B, H, Lq, Lk]`, weight `[H, H]` -> as scores.
    """
    return (weight.to(scores.dtype) @ scores.flatten(2)).view_as(scores)


def from_the_right(x: Tensor) -> Tensor:
    """Sums over the last axis from each place to the end."""
    return x.flip(-1).cumsum(-1).flip(-1)


def at_or_before(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Which keys stand at a query's position or before: bool `[B|1, 1, Lq, Lk]`."""
    q = q_pos[None] if q_pos.dim() == 1 else q_pos
    k = k_pos[None] if k_pos.dim() == 1 else k_pos
    return k[:, None, None, :] <= q[:, None, :, None]


def _square(name: str, weight: Tensor, heads: int) -> None:
    if tuple(weight.shape) != (heads, heads):
        raise ShapeError(f"{name}: [{heads}, {heads}] expected, got {list(weight.shape)}")
