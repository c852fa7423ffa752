"""What is done to the values of an attention: norms, exponentials, projections."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.core.spec import Spec
from variform.errors import Problem
from variform.parts.attention.around import AroundAttention, wide_inside
from variform.parts.attention.memory import ZeroMemory
from variform.parts.kinds import Attention, Memory, Norm, Sides, State

Size = Annotated[int, Field(gt=0)]


@register("value_norm")
class NormedValues(AroundAttention):
    """A norm on each head's values, before they are attended: v <- norm(v).

    Shapes:
        q, k, v: as the inner attention's

    Args:
        attention: the attention that sees the normed values.
        norm: of the features of one head's value.
        dim_value: features of a head's value; `dim_head` by default.
        dim_head: features of a head.
    """

    each_alone: ClassVar[bool] = True

    def __init__(
        self,
        attention: Attention = use("softmax"),
        norm: Norm = use("rms_norm"),
        dim_value: Size | None = inherit(None),
        dim_head: Size = INHERIT,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.norm = norm

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm sees the features of a value."""
        return {"dim": facts.get("dim_value") or facts["dim_head"]} if slot == "norm" else {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Norm the values and attend."""
        return self.attention(q, k, self.norm(v), sides)


@register("laser")
class LaserAttention(AroundAttention):
    """Attention over exponentiated values (LASER, Duvvuri and Dhillon 2024, arXiv:2411.03493).

    o = log(P exp(c tanh(v / c))): a gradient reaches the values with the weights of the exponentials. A query that
    attends to nothing gets zeros.

    Shapes:
        q, k, v: as the inner attention's

    Args:
        attention: the attention that sees the exponentials.
        clamp: c, which bounds the exponents; None leaves them unbounded.
    """

    each_alone: ClassVar[bool] = True

    def __init__(
        self, attention: Attention = use("softmax"), clamp: Annotated[float, Field(gt=0)] | None = 15.0
    ) -> None:
        super().__init__()
        self.attention = attention
        self.clamp = clamp

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Values beside those of the sequence are exponentiated too, but for zeros, which count as exp(-inf)."""
        inner = cls.inner(facts)
        memories = [] if inner is None else [spec for _, spec in inner.walk() if issubclass(spec.part, Memory)]
        if any(issubclass(spec.part, ExponentialMemory) for spec in memories):
            return []
        own = [spec for spec in memories if not any(issubclass(inner.part, Memory) for inner in _inside(spec))]
        name = next((spec.name for spec in own if not issubclass(spec.part, ZeroMemory)), None)
        if name is None:
            return []
        hint = f"take exponential(memory={name}(...))"
        return [Problem("attention", f"the values of the memory {name!r} would be taken for exponentials", name, hint)]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend to the exponentials and take the logarithm."""
        beside = sides.beside
        if beside is not None and beside.v is not None:
            sides = replace(sides, beside=beside._replace(v=exponentials(beside.v, self.clamp)))
        out = self.attention(q, k, exponentials(v, self.clamp), sides)
        return (_logarithm(out[0]), out[1]) if isinstance(out, tuple) else _logarithm(out)


def _inside(spec: Spec) -> list[Spec]:
    """The specs in the slots of another, at any depth."""
    return [inner for path, inner in spec.walk() if path]


def exponentials(v: Tensor, clamp: float | None) -> Tensor:
    """exp(clamp tanh(v / clamp))."""
    return (v if clamp is None else (v / clamp).tanh() * clamp).exp()


def _logarithm(x: Tensor) -> Tensor:
    """log(max(x, 1e-20)), and 0 where x is 0: that is what a query without keys has."""
    empty = x == 0
    return x.masked_fill(empty, 1.0).clamp(min=1e-20).log()


@register("exponential")
class ExponentialMemory(Memory):
    """Keys and values for LASER attention: the values of another memory, exponentiated as those of the sequence are.

    Shapes:
        returns: [kv_heads, count, dim_head], twice

    Args:
        memory: the keys and values.
        clamp: as the attention's.
    """

    def __init__(
        self, memory: Memory = use("learned", count=2), clamp: Annotated[float, Field(gt=0)] | None = 15.0
    ) -> None:
        super().__init__()
        self.memory = memory
        self.clamp = clamp

    def forward(self) -> tuple[Tensor, Tensor]:
        """The keys, and the exponentials of the values."""
        k, v = self.memory()
        return k, exponentials(v, self.clamp)


@register("orthogonal_values")
class OrthogonalValues(AroundAttention):
    """What attention gives, less its part along the token's own value (belief attention, openreview Ard2QzPAUK).

    o_i <- o_i - (o_i . v_i / |v_i|^2) v_i, head by head, or over the values of all heads as one vector, or both, one
    behind the other in each head. Each token is treated on its own, so nothing of the future is seen.

    Shapes:
        q, k, v: as the inner attention's, with Lq = Lk: a token has a value of its own in self-attention alone;
        over "both" the result is [B, H, L, 2 Dv]

    Args:
        attention: the attention whose results are projected.
        over: "head", "token" for all heads of a token together, or "both", which needs a `projected_attention`.
    """

    can: ClassVar[Can] = Can(cross=False)

    def __init__(self, attention: Attention = use("softmax"), over: Literal["head", "token", "both"] = "token") -> None:
        super().__init__()
        self.attention = attention
        self.over = {"head": ((3,),), "token": ((1, 3),), "both": ((1, 3), (3,))}[over]

    @classmethod
    def value_times(cls, args: Facts) -> int:
        """Both projections are as many features again."""
        return super().value_times(args) * (2 if args.get("over") == "both" else 1)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Results of the inner attention are as wide as values."""
        return wide_inside(cls.inner(facts))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend and project."""
        out = self.attention(q, k, v, sides)
        if isinstance(out, tuple):
            return self._projected(out[0], v), out[1]
        return self._projected(out, v)

    def _projected(self, out: Tensor, v: Tensor) -> Tensor:
        found = [orthogonal(out, v, dims) for dims in self.over]
        return found[0] if len(found) == 1 else torch.cat(found, -1)


def orthogonal(x: Tensor, v: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x less its part along v; in float32 at least.

    Shapes:
        x: [B, H, L, D], v: [B, Hk, L, D] -> [B, H, L, D]
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if v.shape[1] != x.shape[1]:
        v = v.repeat_interleave(x.shape[1] // v.shape[1], 1)
    wide, along = x.to(dtype), v.to(dtype)
    length = along.square().sum(dims, keepdim=True).clamp(min=1e-24)
    share = (wide * along).sum(dims, keepdim=True) / length
    return (wide - share * along).to(x.dtype)
