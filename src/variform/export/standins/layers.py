"""Models, stacks and layers as a standalone file has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from variform.stack.execute import ModuleList
from variform.stack.prefix import behind_prefix

Streams = Mapping[str, Any]

PUBLISHES, HIDDEN = True, True
"""Facts of one model, put into the code when it is written: parts publish streams; the encoder has a head."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b."""
    return F.linear(x, weight, bias)


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


class TransformerLayer(nn.Module):
    """A layer: residual steps in order."""

    def __init__(self, sublayers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sublayers = ModuleList(sublayers)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        if PUBLISHES:
            out: Tensor = run_in_order(self.sublayers, x, streams)
            return out
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
    if isinstance(out, tuple):
        published.update(out[1])
        out = out[0]
    x = out
    return x


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
        numbers: Tensor | None = None,
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
            "numbers": numbers,
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
        out: Tensor = self.decoder(target, valid=valid, context=context, context_mask=source_valid)
        return out
