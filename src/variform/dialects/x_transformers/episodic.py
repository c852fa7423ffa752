"""Keys and values that a wrapper around a model learns, beside those of the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.errors import KeywordError
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.mixer.multi_head import MultiHead


class EpisodicMemories(nn.Module):
    """Learned keys and values of all layers; returns [2, depth, heads, seq_len, dim_head].

    Args:
        depth: self-attentions.
        heads: key and value heads.
        seq_len: keys a head.
        dim_head: features of a head.
    """

    def __init__(self, depth: int, heads: int, seq_len: int, dim_head: int) -> None:
        super().__init__()
        self.mem_kv = nn.Parameter(torch.randn(2, depth, heads, seq_len, dim_head) * 0.02)

    def forward(self) -> Tensor:
        """The keys and values."""
        return self.mem_kv


class EpisodicMemoryWrapper(nn.Module):
    """A model whose self-attentions attend to `episodic_mem_len` learned keys more, whatever the masks say.

    The model is not changed: the keys are those of calls through this wrapper.

    Args:
        net: a `TransformerWrapper`.
        episodic_mem_len: keys a head.

    Raises:
        KeywordError: no self-attention, or one that has no place for them.
    """

    def __init__(self, net: TransformerWrapper, episodic_mem_len: int) -> None:
        super().__init__()
        self.net = net
        mixers = [m for m in net.native.modules() if isinstance(m, MultiHead)]
        if not mixers:
            raise KeywordError("there is no self-attention that could attend to memories", path="episodic_mem_len")
        sizes = {(m.kv_heads, m.dim_head) for m in mixers}
        if len(sizes) > 1 or not all(_has_place(m) for m in mixers):
            message = "every self-attention must be a plain softmax over all keys, of equal heads, without num_mem_kv"
            raise KeywordError(message, path="episodic_mem_len", value=episodic_mem_len)
        heads, dim_head = sizes.pop()
        memories = EpisodicMemories(len(mixers), heads, episodic_mem_len, dim_head)
        self.episodic_mems = memories.to(mixers[0].k.weight)
        self.__dict__["mixers"] = mixers

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within, the model attends to the memories."""
        keys, values = self.episodic_mems().unbind(-5)
        attentions = [mixer.attention for mixer in self.__dict__["mixers"]]
        for place, attention in enumerate(attentions):
            attention.__dict__["memory"] = _Given(keys.select(-4, place), values.select(-4, place))
        try:
            yield
        finally:
            for attention in attentions:
                attention.__dict__["memory"] = None

    def forward(self, x: Tensor, **arguments: Any) -> Any:
        """The model, with the memories."""
        with self.remembering():
            return self.net(x, **arguments)


class _Given(nn.Module):
    """Keys and values as they are."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.pair = keys, values

    def forward(self) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.pair


def _has_place(mixer: MultiHead) -> bool:
    attention = mixer.attention
    return isinstance(attention, SoftmaxAttention) and attention.memory is None
