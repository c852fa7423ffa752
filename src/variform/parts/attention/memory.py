"""Learned keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Facts
from variform.core.registry import register
from variform.parts.kinds import Memory, Norm

Size = Annotated[int, Field(gt=0)]


@register("learned")
class LearnedMemory(Memory):
    """Persistent memory (Sukhbaatar et al. 2019, arXiv:1907.01470): learned keys and values, the same for every input.

    Shapes:
        returns: [kv_heads, count, dim_head] and [kv_heads, count, dim_value]

    Args:
        count: how many there are.
        kv_heads: number of key and value heads.
        dim_head: features of a key.
        norm: a norm on the keys, where the sequence's keys have one.
        std: standard deviation of the initial keys and values.
        dim_value: features of a value; `dim_head` by default.
    """

    def __init__(
        self,
        count: Size,
        kv_heads: Size = INHERIT,
        dim_head: Size = INHERIT,
        norm: Norm | None = None,
        std: Annotated[float, Field(ge=0)] = 0.02,
        dim_value: Size | None = inherit(None),
    ) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(kv_heads, count, dim_head))
        self.values = nn.Parameter(torch.empty(kv_heads, count, dim_value or dim_head))
        self.norm = norm
        self.std = std
        self.reset_parameters()

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm sees the features of a head."""
        return {"dim": facts["dim_head"]}

    def reset_parameters(self) -> None:
        """Normal keys and values."""
        nn.init.normal_(self.keys, 0.0, self.std)
        nn.init.normal_(self.values, 0.0, self.std)

    def forward(self) -> tuple[Tensor, Tensor]:
        """The keys, normalised, and the values."""
        return self.keys if self.norm is None else self.norm(self.keys), self.values


@register("zero")
class ZeroMemory(Memory):
    """One key and one value of zeros, so that a query can attend to nothing (off by one,
    https://www.evanmiller.org/attention-is-off-by-one.html).

    Shapes:
        returns: [kv_heads, 1, dim_head] and [kv_heads, 1, dim_value]

    Args:
        kv_heads: number of key and value heads.
        dim_head: features of one head.
        dim_value: features of a value; `dim_head` by default.
    """

    zeros: Tensor

    def __init__(
        self, kv_heads: Size = INHERIT, dim_head: Size = INHERIT, dim_value: Size | None = inherit(None)
    ) -> None:
        super().__init__()
        self.sizes = dim_head, dim_value or dim_head
        self.register_buffer("zeros", torch.zeros(kv_heads, 1, max(self.sizes)), persistent=False)

    def reset_parameters(self) -> None:
        """Zeros."""
        self.zeros.zero_()

    def forward(self) -> tuple[Tensor, Tensor]:
        """The key and the value."""
        dim_key, dim_value = self.sizes
        return self.zeros[..., :dim_key], self.zeros[..., :dim_value]


@register("joined")
class JoinedMemory(Memory):
    """Several memories, one behind the other.

    Args:
        memories: they.
    """

    def __init__(self, memories: Sequence[Memory]) -> None:
        super().__init__()
        self.memories = nn.ModuleList(memories)

    def forward(self) -> tuple[Tensor, Tensor]:
        """The keys and the values of all."""
        keys, values = zip(*(memory() for memory in self.memories), strict=True)
        return torch.cat(keys, -2), torch.cat(values, -2)
