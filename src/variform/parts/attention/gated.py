"""Gates and factors on what the heads of an attention give."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Facts, use
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.parts.attention.around import AroundAttention, wide_inside
from variform.parts.kinds import Attention, Projection, Sides, State

Size = Annotated[int, Field(gt=0)]


@register("gated")
class GatedAttention(AroundAttention):
    """Gates on the attended values o: o <- o * act(W_x x + W_o o), each map optional.

    Gates of the input (AlphaFold 2, doi:10.1038/s41586-021-03819-2), one a head ("attend to nothing", arXiv:2306.12929)
    or one a feature; and of the output itself.

    Shapes:
        q, k, v: as the inner attention's; the gates of the input need `sides.x`, [B, Lq, dim]

    Args:
        attention: the attention whose values are gated.
        input_gate: the map W_x, from the token's features; None for none.
        output_gate: the map W_o, from the attended values of all heads; None for none.
        activation: act.
        input_per_head: one gate for each head from W_x, not one for each feature.
        output_per_head: the same of W_o.
        dim: features of a token.
        heads: number of query heads.
        dim_value: features of a head's value; `dim_head` by default.
        dim_head: features of a head.
    """

    each_alone: ClassVar[bool] = True

    def __init__(
        self,
        attention: Attention = use("softmax"),
        input_gate: Projection | None = use("linear", zero=True),
        output_gate: Projection | None = None,
        activation: Literal["sigmoid", "silu"] = "sigmoid",
        input_per_head: bool = False,
        output_per_head: bool = False,
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        dim_value: Size | None = inherit(None),
        dim_head: Size = INHERIT,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.input_gate = input_gate
        self.output_gate = output_gate
        self.silu = activation == "silu"
        self.input_per_head = input_per_head
        self.output_per_head = output_per_head

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The sizes of the gates' maps, which write to no residual stream."""
        if slot == "attention":
            return {}
        inner = facts["heads"] * (facts.get("dim_value") or facts["dim_head"])
        one = facts["input_per_head"] if slot == "input_gate" else facts["output_per_head"]
        return {
            "inputs": facts["dim"] if slot == "input_gate" else inner,
            "outputs": facts["heads"] if one else inner,
            "writes": None,
        }

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """There is a gate, of features as wide as values."""
        if facts["input_gate"] is None and facts["output_gate"] is None:
            return [Problem("input_gate", "there is nothing to gate with: give input_gate or output_gate")]
        return wide_inside(cls.inner(facts))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend and gate."""
        out = self.attention(q, k, v, sides)
        out, state = out if isinstance(out, tuple) else (out, None)
        heads, logits = out.shape[1], None
        if self.input_gate is not None:
            logits = to_heads(self.input_gate(token_features(sides, self.name)), heads)
        if self.output_gate is not None:
            own = to_heads(self.output_gate(out.transpose(1, 2).flatten(2)), heads)
            logits = own if logits is None else logits + own
        assert logits is not None, "checked: there is a gate"
        out = out * (F.silu(logits) if self.silu else logits.sigmoid())
        return out if state is None else (out, state)


@register("head_scale")
class HeadScaleAttention(AroundAttention):
    """A learned factor on what each head gives (NormFormer, Shleifer et al. 2021, arXiv:2110.09456): o_h <- s_h o_h.

    Shapes:
        q, k, v: as the inner attention's

    Args:
        attention: the attention whose heads are scaled.
        heads: number of query heads.
    """

    each_alone: ClassVar[bool] = True

    def __init__(self, attention: Attention = use("softmax"), heads: Size = INHERIT) -> None:
        super().__init__()
        self.attention = attention
        self.scale_of_heads = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Factors of one."""
        nn.init.ones_(self.scale_of_heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend and scale."""
        out = self.attention(q, k, v, sides)
        factor = self.scale_of_heads[:, None, None]
        return (out[0] * factor, out[1]) if isinstance(out, tuple) else out * factor


def to_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, heads * n] to [B, heads, L, n]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def token_features(sides: Sides, name: str) -> Tensor:
    """What the queries were made of.

    Raises:
        ShapeError: the caller does not say.
    """
    if sides.x is None:
        raise ShapeError(
            f"the attention {name!r} reads the features that the queries were made of, and was called without: "
            "put it into a mixer"
        )
    return sides.x
