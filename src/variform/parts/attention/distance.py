"""Attention by the distance of queries and keys."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from variform.core.fields import fields_of
from variform.core.part import Facts, use
from variform.core.registry import register
from variform.errors import Problem
from variform.parts.attention.around import AroundAttention
from variform.parts.kinds import Attention, Memory, Scoring, Sides, State


@register("l2_distance")
class DistanceAttention(AroundAttention):
    """Scores by squared distance (Kim et al. 2020, arXiv:2006.04710): S = -|q - k|^2 * scale, D^-0.5 by default.

    Queries and keys get two features more, [2 q, -|q|^2, -1] and [k, 1, |k|^2], whose product is that distance, so
    that every attention that multiplies the two serves it, the fused kernels included.

    Shapes:
        q, k, v: as the inner attention's

    Args:
        attention: the attention that makes weights of the scores; its `scale` is the factor.
    """

    each_alone: ClassVar[bool] = True

    def __init__(self, attention: Attention = use("softmax")) -> None:
        super().__init__()
        self.attention = attention
        self.own_scale = has_scale(attention)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """No scoring reads the features of queries, which are longer here."""
        inner = cls.inner(facts)
        for _, spec in () if inner is None else inner.walk():
            if issubclass(spec.part, Scoring) and any(field.name == "dim_head" for field in fields_of(spec.part)):
                return [Problem("attention", f"{spec.name!r} reads queries, which are made longer here", spec.name)]
        return []

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend by distance."""
        factor = 1.0 if self.own_scale else math.sqrt((q.shape[-1] + 2) / q.shape[-1])  # D^-0.5 of the D given here
        beside = sides.beside
        if beside is not None and beside.k is not None:
            sides = replace(sides, beside=beside._replace(k=with_length(beside.k)))
        return self.attention(near(q) * factor, with_length(k), v, sides)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """The inner attention's, with longer keys."""
        return self.attention.init_state(batch, max_len, like, heads, dim_key + 2, dim_value)


def near(q: Tensor) -> Tensor:
    """[2 q, -|q|^2, -1]."""
    length = q.square().sum(-1, keepdim=True)
    return torch.cat((2 * q, -length, -torch.ones_like(length)), -1)


def with_length(k: Tensor) -> Tensor:
    """[k, 1, |k|^2]."""
    return torch.cat((F.pad(k, (0, 1), value=1.0), k.square().sum(-1, keepdim=True)), -1)


def has_scale(attention: Attention) -> bool:
    """Whether an attention, or the one it stands around, was given the factor on its scores."""
    while isinstance(attention, AroundAttention):
        attention = attention.attention
    return getattr(attention, "scale", None) is not None


@register("with_length")
class LengthMemory(Memory):
    """Keys and values for attention by distance: the keys of another memory, as that attention makes its own.

    Shapes:
        returns: [kv_heads, count, dim_head + 2] and [kv_heads, count, dim_head]

    Args:
        memory: the keys and values.
    """

    def __init__(self, memory: Memory = use("learned", count=2)) -> None:
        super().__init__()
        self.memory = memory

    def forward(self) -> tuple[Tensor, Tensor]:
        """The keys with their lengths, and the values."""
        k, v = self.memory()
        return with_length(k), v
