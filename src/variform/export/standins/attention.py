"""Attention as a standalone file has it: everything that asks for it, as one bool or float mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.ops.scores import t5_bucket

GROUPED, STRIDED, WIDE_VALUES, NARROW_VALUES, COMPUTED = True, True, True, True, True
"""Facts of one model, put into the code when it is written: heads share keys; queries, keys and values may be views
whose features do not lie side by side; a network makes biases."""


class Sides(NamedTuple):
    """What attention knows beside q, k and v: positions, valid keys, and biases of the scores."""

    q_positions: Tensor | None = None
    k_positions: Tensor | None = None
    q_valid: Tensor | None = None
    k_valid: Tensor | None = None
    scores: tuple[Any, ...] = ()


class Reach(NamedTuple):
    """How many keys a query sees before and after its place, behind those in front of the sequence; None: unknown."""

    back: int | None
    ahead: int | None
    front: int = 0


class SoftmaxAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762): softmax(Q K^T / sqrt(D) + bias) V."""

    def __init__(
        self,
        causal: bool = False,
        dropout: float = 0.0,
        scale: float | None = None,
        memory: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.dropout = dropout
        self.scale = scale
        self.memory = memory

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        reach = reach_of(sides, self.causal) if sides.scores else None
        if self.memory is not None:
            mask = attention_mask(q, k, sides, self.causal)
            return attend_with_memory(q, k, v, mask, self.memory(), dropout=dropout, scale=self.scale, reach=reach)
        if self.causal and sides.k_valid is None and not sides.scores and q.shape[2] == k.shape[2]:
            return attend(q, k, v, causal=True, dropout=dropout, scale=self.scale)
        mask = attention_mask(q, k, sides, self.causal)
        return attend(q, k, v, mask, dropout=dropout, scale=self.scale, reach=reach)


class LocalAttention(nn.Module):
    """Softmax attention in a sliding window (Longformer, Beltagy et al. 2020, arXiv:2004.05150)."""

    def __init__(self, window: int, causal: bool = False, dropout: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        self.window = window
        self.causal = causal
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        back, ahead = (self.window - 1, 0) if self.causal else (self.window // 2, self.window // 2)
        dropout = self.dropout if self.training else 0.0
        is_plain = sides.q_positions is None and sides.k_positions is None and sides.k_valid is None
        if is_plain and blocks_pay(q, back, ahead):
            return attend_blocks(q, k, v, sides, back, ahead, dropout=dropout, scale=self.scale)
        mask = attention_mask(q, k, sides, self.causal, back)
        reach = reach_of(sides, self.causal, back) if sides.scores else None
        return attend(q, k, v, mask, dropout=dropout, scale=self.scale, reach=reach)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
    reach: Reach | None = None,
) -> Tensor:
    """The fused kernel of softmax attention; with biases, some queries at a time where that pays.

    Where heads share keys, head i uses key head i // (heads / kv_heads).
    """
    if reach is not None and allowed is not None and chunks_pay(q, k, v, allowed, reach, dropout):
        return attend_chunks(q, k, v, allowed, reach, scale=scale)
    if STRIDED:  # the fused kernel wants the features of a head side by side
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    if WIDE_VALUES and q.shape[3] < v.shape[3]:
        return attend_wide_values(q, k, v, allowed, causal=causal, dropout=dropout, scale=scale)
    size = v.shape[3]
    if NARROW_VALUES:  # the fused kernel wants as many features of a value as of a key
        v = F.pad(v, (0, q.shape[3] - size))
    shared = GROUPED and q.shape[1] != k.shape[1]
    if shared and q.shape[2] == 1 and not causal and (allowed is None or allowed.dim() == 2 or allowed.shape[1] == 1):
        y = attend_grouped_query(q, k, v, allowed, dropout=dropout, scale=scale)
    else:
        y = F.scaled_dot_product_attention(
            q, k, v, allowed, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=shared
        )
    return y[..., :size] if NARROW_VALUES else y


def attend_wide_values(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention whose values have more features than its keys: zeros beside these, for the kernel wants them equal."""
    factor = q.shape[3] ** -0.5 if scale is None else scale
    q, k = (F.pad(t, (0, v.shape[3] - t.shape[3])) for t in (q, k))
    return F.scaled_dot_product_attention(q, k, v, allowed, dropout_p=dropout, is_causal=causal, scale=factor)


def attend_grouped_query(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Attention of one query: the heads that share keys stand as rows, so that keys are read once a group."""
    rows = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    y = F.scaled_dot_product_attention(rows, k, v, allowed, dropout_p=dropout, scale=scale)
    return y.reshape(*q.shape[:3], v.shape[3])


def chunks_pay(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, reach: Reach, dropout: float) -> bool:
    """Whether to attend some queries at a time: with biases of many pairs or in training, on the CPU."""
    if not bias.is_floating_point() or dropout or not q.is_cpu or torch.compiler.is_compiling():
        return False
    if COMPUTED and torch.is_grad_enabled():
        return False
    training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    many = training or q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] >= 1 << 16
    if GROUPED:
        many = many or (k.shape[1] != q.shape[1] and k.shape[2] >= 128)
    return many and (reach.ahead is not None or (training and bias.requires_grad))


def attend_chunks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, reach: Reach, scale: float | None = None) -> Tensor:
    """Attention some queries at a time, whose scores stay in the cache; keys that they cannot see are not visited."""
    (batch, heads, length, dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    factor = dim**-0.5 if scale is None else scale
    size = max(16, (1 << 20) // (batch * heads * keys))
    parts = []
    for start in range(0, length, size):
        stop, first, last = min(start + size, length), 0, keys
        if reach.back is not None and not reach.front:
            first = max(0, start - reach.back)
        if reach.ahead is not None:
            last = min(keys, reach.front + stop + reach.ahead)
        own = bias.expand(*bias.shape[:-2], length, keys)[..., start:stop, first:last]
        queries = q[:, :, start:stop].reshape(batch, kv_heads, -1, dim)
        products = (queries * factor) @ k[:, :, first:last].transpose(-1, -2)
        scores = products.view(batch, heads, -1, last - first) + own
        hidden = scores.amax(-1, keepdim=True) == -torch.inf
        weights = torch.softmax(scores.masked_fill(hidden, 0.0), -1).masked_fill(hidden, 0.0)
        y = weights.view(batch, kv_heads, -1, last - first) @ v[:, :, first:last]
        parts.append(y.view(batch, heads, -1, v.shape[3]))
    return torch.cat(parts, 2)


def blocks_pay(q: Tensor, back: int, ahead: int) -> bool:
    """Whether to attend block by block: on a long sequence of which the window is a small part, on the CPU."""
    if not q.is_cpu or q.shape[2] < 512 or torch.compiler.is_compiling():
        return False
    size, _, counts = window_blocks(q.shape[2], back, ahead)
    share = sum(counts) / len(counts) ** 2
    return share <= (0.5 if q.dtype.itemsize >= 4 else 0.4) * (1.0 if size == 128 else 2 / 3)


def window_blocks(length: int, back: int, ahead: int) -> tuple[int, list[int], list[int]]:
    """The size of a block; for each block of queries, the first block of keys that it sees, and how many it sees."""
    size = 64 if back + ahead < 128 else 128
    starts = range(0, length, size)
    first = [max(0, start - back) // size for start in starts]
    last = [min(start + size - 1 + ahead, length - 1) // size for start in starts]
    return size, first, [end - begin + 1 for begin, end in zip(first, last, strict=True)]


def attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sides: Sides,
    back: int,
    ahead: int,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention in a window, block by block: blocks of queries that see equally many blocks of keys run together."""
    (batch, heads, length, dim), device = q.shape, q.device
    size, first, counts = window_blocks(length, back, ahead)
    factor = dim**-0.5 if scale is None else scale
    if GROUPED and k.shape[1] != heads:
        k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    q, k, v = (F.pad(t, (0, 0, 0, -length % size)).reshape(batch * heads, -1, size, t.shape[3]) for t in (q, k, v))
    out, inside = v.new_zeros(batch * heads, len(counts), size, v.shape[3]), torch.arange(size, device=device)
    for count in sorted(set(counts)):
        rows = [row for row in range(len(counts)) if counts[row] == count]
        tiles = torch.tensor([[first[row] + i for i in range(count)] for row in rows], device=device)
        q_at = torch.tensor(rows, device=device)[:, None] * size + inside  # (rows, size)
        k_at = (tiles[..., None] * size + inside).flatten(1)  # (rows, count * size)
        distance = k_at[:, None, :] - q_at.clamp(max=length - 1)[:, :, None]
        mask = ((distance >= -back) & (distance <= ahead) & (k_at < length)[:, None, :])[None]
        if sides.scores:
            bias = sum(change.bias(q_at, k_at).to(q.dtype) for change in sides.scores).transpose(0, 1)
            mask = bias.masked_fill(~mask, -torch.inf).repeat(batch, 1, 1, 1)
        keys, values = (t[:, tiles].flatten(2, 3) for t in (k, v))
        y = F.scaled_dot_product_attention(q[:, rows], keys, values, mask, dropout_p=dropout, scale=factor)
        out[:, rows] = y
    return out.view(batch, heads, -1, v.shape[3])[:, :, :length]


def attention_mask(q: Tensor, k: Tensor, sides: Sides, causal: bool, back: int | None = None) -> Tensor | None:
    """What may attend to what: a bool mask, or biases with -inf where not. None where all may."""
    q_pos, k_pos = positions_of(sides.q_positions, q), positions_of(sides.k_positions, k)
    mask, ahead = None, 0 if causal else back
    if ahead is not None:
        mask = relative(q_pos, k_pos) <= ahead
    if back is not None:
        mask = both(mask, relative(q_pos, k_pos) >= -back)
    if sides.k_valid is not None:
        mask = both(mask, sides.k_valid[:, None, None, :])
    if sides.scores:
        bias = sum(modifier.bias(q_pos, k_pos).to(q.dtype) for modifier in sides.scores)
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    return mask


def reach_of(sides: Sides, causal: bool, back: int | None = None) -> Reach:
    """How far queries see, where they and keys are counted alike."""
    if sides.q_positions is not None or sides.k_positions is not None:
        return Reach(None, None)
    return Reach(back, 0 if causal else back)


def both(a: Tensor | None, b: Tensor) -> Tensor:
    """Where two masks allow it; None allows all."""
    return b if a is None else a & b


def positions_of(positions: Tensor | None, x: Tensor) -> Tensor:
    """Positions that are given, or 0..L-1."""
    return torch.arange(x.shape[2], device=x.device) if positions is None else positions


def attend_with_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    memory: tuple[Tensor, Tensor],
    dropout: float = 0.0,
    scale: float | None = None,
    reach: Reach | None = None,
) -> Tensor:
    """Attention to learned keys and values in front, which no mask hides, and then to the sequence's own."""
    count, batch = memory[0].shape[1], q.shape[0]
    if reach is not None:
        reach = reach._replace(front=count)
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], q.shape[2], k.shape[2])
        mask = F.pad(mask, (count, 0), value=mask.dtype == torch.bool)
    k = torch.cat((memory[0].to(k.dtype).expand(batch, -1, -1, -1), k), 2)
    v = torch.cat((memory[1].to(v.dtype).expand(batch, -1, -1, -1), v), 2)
    return attend(q, k, v, mask, dropout=dropout, scale=scale, reach=reach)


class Alibi(NamedTuple):
    """Attention with linear biases (Press et al. 2021, arXiv:2108.12409): S -= slope_h * |q - k|."""

    slopes: Tensor

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return self.slopes[:, None, None] * -relative(q_pos, k_pos).abs()


class BucketBias(NamedTuple):
    """Learned bias per bucket of relative distance (T5, arXiv:1910.10683): S += table[bucket(k - q), h]."""

    table: Tensor
    bidirectional: bool
    max_distance: int = 128

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        bucket = t5_bucket(relative(q_pos, k_pos), self.bidirectional, self.table.shape[0], self.max_distance)
        rows: Tensor = self.table[bucket[:, 0]].permute(0, 3, 1, 2)
        return rows


class DistanceBias(NamedTuple):
    """A bias that a network makes of the distance (Wang et al. 2021, arXiv:2108.00154): S += f(q - k)[h]."""

    function: Any

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = -relative(q_pos, k_pos)[:, 0]
        low, high = (int(end) for end in distance.aminmax())
        table: Tensor = self.function(torch.arange(low, high + 1, device=distance.device))
        return table[distance - low].permute(0, 3, 1, 2)


def relative(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """k - q, [B or 1, 1, Lq, Lk]."""
    distance = k_pos[..., None, :] - q_pos[..., :, None]
    return distance[None, None] if distance.dim() == 2 else distance[:, None]
