"""What stands in a standalone file for the library's machinery: the same computation, as a plain forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from variform.ops.scores import t5_bucket
from variform.stack.execute import ModuleList
from variform.stack.prefix import behind_prefix

Streams = Mapping[str, Any]

PUBLISHES, HIDDEN, GROUPED, UNEQUAL = True, True, True, True
"""Facts of one model, put into the code when it is written: parts publish streams; the encoder has a head; heads share
keys; queries and values have heads of different sizes."""


class Linear(nn.Linear):
    """y = x W^T + b, with W drawn from N(0, std^2); divided by sqrt(writes) where it writes to the residual stream."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, *, std: float | None = None, writes: int | None = None
    ) -> None:
        self.std = std if std is None or writes is None else std / math.sqrt(writes)
        super().__init__(inputs, outputs, bias)

    def reset_parameters(self) -> None:
        if self.std is None:
            super().reset_parameters()
            return
        nn.init.normal_(self.weight, 0.0, self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Sides(NamedTuple):
    """What attention knows beside q, k and v: positions, valid keys, and biases of the scores."""

    q_positions: Tensor | None = None
    k_positions: Tensor | None = None
    q_valid: Tensor | None = None
    k_valid: Tensor | None = None
    scores: tuple[Any, ...] = ()


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
        if self.memory is not None:
            mask = attention_mask(q, k, sides, self.causal)
            return attend_with_memory(q, k, v, mask, self.memory(), dropout=dropout, scale=self.scale)
        if self.causal and sides.k_valid is None and not sides.scores and q.shape[2] == k.shape[2]:
            return attend(q, k, v, causal=True, dropout=dropout, scale=self.scale)
        return attend(q, k, v, attention_mask(q, k, sides, self.causal), dropout=dropout, scale=self.scale)


class LocalAttention(nn.Module):
    """Softmax attention in a sliding window (Longformer, Beltagy et al. 2020, arXiv:2004.05150)."""

    def __init__(self, window: int, causal: bool = False, dropout: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        self.window = window
        self.causal = causal
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        back = self.window - 1 if self.causal else self.window // 2
        mask = attention_mask(q, k, sides, self.causal, back)
        return attend(q, k, v, mask, dropout=self.dropout if self.training else 0.0, scale=self.scale)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """The fused kernel of softmax attention; where heads share keys, head i uses key head i // (heads / kv_heads)."""
    shared = GROUPED and q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, allowed, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=shared
    )


def attention_mask(q: Tensor, k: Tensor, sides: Sides, causal: bool, back: int | None = None) -> Tensor | None:
    """What may attend to what: a bool mask, or biases with -inf where not. None where all may."""
    q_pos, k_pos = positions_of(sides.q_positions, q), positions_of(sides.k_positions, k)
    mask = None
    if causal:
        mask = k_pos[..., None, :] <= q_pos[..., :, None]
    if back is not None:
        ahead = 0 if causal else back
        near = k_pos[..., None, :] >= q_pos[..., :, None] - back
        near = near & (k_pos[..., None, :] <= q_pos[..., :, None] + ahead)
        mask = near if mask is None else mask & near
    if mask is not None and mask.dim() == 3:
        mask = mask.unsqueeze(1)
    if sides.k_valid is not None:
        valid = sides.k_valid[:, None, None, :]
        mask = valid if mask is None else mask & valid
    if sides.scores:
        bias = sum(modifier.bias(q_pos, k_pos).to(q.dtype) for modifier in sides.scores)
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    return mask


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
) -> Tensor:
    """Attention to learned keys and values in front, which no mask hides, and then to the sequence's own."""
    count, batch = memory[0].shape[1], q.shape[0]
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], q.shape[2], k.shape[2])
        mask = F.pad(mask, (count, 0), value=mask.dtype == torch.bool)
    k = torch.cat((memory[0].to(k.dtype).expand(batch, -1, -1, -1), k), 2)
    v = torch.cat((memory[1].to(v.dtype).expand(batch, -1, -1, -1), v), 2)
    return attend(q, k, v, mask, dropout=dropout, scale=scale)


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


def relative(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """k - q, [B or 1, 1, Lq, Lk]."""
    distance = k_pos[..., None, :] - q_pos[..., :, None]
    return distance[None, None] if distance.dim() == 2 else distance[:, None]


class Scores(nn.Module):
    """Scaled dot products: S_ij = q_i . k_j / sqrt(D) (Vaswani et al. 2017, arXiv:1706.03762)."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5


def attend_scores(q: Tensor, k: Tensor, v: Tensor, offset: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D) + offset) v, fused: the scores are never held."""
    dim, dim_v, scale = q.shape[-1], v.shape[-1], q.shape[-1] ** -0.5
    if offset is not None:
        offset = offset_for(offset, q, k)
        if causal:
            later = torch.ones(offset.shape[-2:], dtype=torch.bool, device=offset.device).triu(1)
            offset = offset.masked_fill(later, -torch.inf)
    if UNEQUAL and dim != dim_v:  # fused kernels want equal sizes
        q, k = (F.pad(t, (0, dim_v - dim)) if dim < dim_v else t for t in (q, k))
        v = F.pad(v, (0, dim - dim_v)) if dim_v < dim else v
    y = F.scaled_dot_product_attention(q, k, v, offset, is_causal=causal and offset is None, scale=scale)
    return y[..., :dim_v] if UNEQUAL else y


def offset_for(offset: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The part of an offset that the scores of q and k need."""
    offset, queries, keys = offset[(None,) * (4 - offset.dim())], q.shape[2], k.shape[2]
    rows = slice(None) if offset.shape[2] == 1 else slice(queries)
    columns = slice(None) if offset.shape[3] == 1 else slice(keys)
    return offset[:, :, rows, columns].expand(-1, -1, queries, keys)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, H * D] to [B, H, L, D]."""
    batch, length, _ = x.shape
    return x.view(batch, length, heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, L, D] to [B, L, H * D]."""
    batch, _, length, _ = x.shape
    return x.transpose(1, 2).reshape(batch, length, -1)


class TransformerLayer(nn.Module):
    """A layer: residual steps in order."""

    def __init__(self, sublayers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sublayers = ModuleList(sublayers)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        if PUBLISHES:
            return run_in_order(self.sublayers, x, streams)
        for sublayer in self.sublayers.in_order():
            x = sublayer(x, streams)
        return x


class LayerStack(nn.Module):
    """Layers in order, then a final norm."""

    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module | None = None, executor: str = "plain") -> None:
        super().__init__()
        self.layers = ModuleList(layers)
        self.norm = norm
        self.executor = executor

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        for layer in self.layers.in_order():
            if self.executor == "checkpoint" and self.training:
                x = checkpoint(layer, x, streams, use_reentrant=False)
            else:
                x = layer(x, streams)
            if PUBLISHES:
                x, streams = published(x, streams)
        if self.norm is not None:
            x = self.norm(x, streams.get("condition"))
        return x


def run_in_order(layers: ModuleList, x: Tensor, streams: Streams, slot: str = "") -> Any:
    """Layers in order; what one publishes, the later ones read."""
    new: dict[str, Any] = {}
    for layer in layers.in_order():
        x = call(layer, x, streams, "", new)
        streams = {**streams, **new}
    return (x, new) if new else x


def call(part: nn.Module, x: Tensor, streams: Streams, slot: str, published: dict[str, Any]) -> Tensor:
    """Call a part and keep what it publishes."""
    out = part(x, streams)
    if not isinstance(out, tuple):
        return out
    published.update(out[1])
    return out[0]


def published(out: Any, streams: Streams) -> tuple[Tensor, dict[str, Any]]:
    """The main result of a part, and the streams with what it published beside it."""
    return (out[0], {**streams, **out[1]}) if isinstance(out, tuple) else (out, dict(streams))


class Transformer(nn.Module):
    """Embedding, stacks of layers, head."""

    def __init__(
        self,
        embedding: nn.Module | None,
        stacks: Sequence[nn.Module],
        head: nn.Module | None = None,
        max_seq_len: int | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.stacks = ModuleList(stacks)
        self.head = head
        self.max_seq_len = max_seq_len

    def forward(
        self,
        inputs: Tensor,
        valid: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        condition: Tensor | None = None,
        prefix: Tensor | None = None,
        prefix_valid: Tensor | None = None,
        hidden: bool = False,
    ) -> Tensor:
        if self.max_seq_len is not None and not inputs.dim() == 4 and inputs.shape[1] > self.max_seq_len:
            raise ValueError(f"the model takes at most {self.max_seq_len} tokens, not {inputs.shape[1]}")
        positions = None if valid is None or inputs.dim() == 4 else (valid.long().cumsum(1) - 1).clamp(min=0)
        streams: dict[str, Any] = {
            "positions": positions,
            "valid": valid,
            "context": context,
            "context_mask": context_mask,
            "condition": condition,
            "prefix": prefix,
            "prefix_valid": prefix_valid,
        }
        x = inputs if self.embedding is None else self.embedding(inputs, streams)
        if prefix is not None:
            streams.update(behind_prefix(prefix, prefix_valid, streams, inputs.shape[1]))
        if PUBLISHES:
            x, streams = published(x, streams)
        for stack in self.stacks.in_order():
            x = stack(x, streams)
            if PUBLISHES:
                x, streams = published(x, streams)
        return x if self.head is None or hidden else self.head(x, streams)


class EncoderDecoder(nn.Module):
    """An encoder whose hidden states are the decoder's context (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(
        self, source: Tensor, target: Tensor, source_valid: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        if HIDDEN:
            context = self.encoder(source, valid=source_valid, hidden=True)
        else:
            context = self.encoder(source, valid=source_valid)
        return self.decoder(target, valid=valid, context=context, context_mask=source_valid)
