"""The two-layer feedforward and its gated family."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.ops.gated import gated
from variform.parts.activation import ACTIVATIONS, Activation
from variform.parts.kinds import FeedForward, Gate, Nonlinearity, Norm, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@register("mlp")
class MLP(FeedForward):
    """Position-wise feedforward (Vaswani et al. 2017, arXiv:1706.03762): y = W2 act(W1 x + b1) + b2.

    Shapes:
        x: [B, L, dim] -> [B, L, dim], or [B, L, dim_out]

    Args:
        dim: features in and out.
        hidden: inner features; `mult * dim` by default.
        mult: inner width as a multiple of `dim`, used when `hidden` is not given.
        activation: act.
        bias: learn b1 and b2.
        dropout: probability of zeroing an inner feature, in training.
        norm: a norm on the inner features (NormFormer, arXiv:2110.09456).
        init_std: standard deviation of the initial weights; torch's default when None.
        writes: residual writes of the model, for the initial scale of W2.
        out_dropout: probability of zeroing an output feature, in training.
        pre_act: what the inner features pass before act; with `activation: none` it takes the place of act.
        dim_out: features out, where they are not those in.
    """

    def __init__(
        self,
        dim: Size = INHERIT,
        hidden: Size | None = None,
        mult: Annotated[float, Field(gt=0)] = 4.0,
        activation: Activation = "gelu",
        bias: bool = True,
        dropout: Rate = 0.0,
        norm: Norm | None = None,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
        out_dropout: Rate = 0.0,
        pre_act: Nonlinearity | None = None,
        dim_out: Size | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden or int(mult * dim)
        self.up = Linear(dim, hidden, bias, std=init_std)
        self.down = Linear(hidden, dim_out or dim, bias, std=init_std, writes=writes)
        self.pre_act = pre_act
        self.act = ACTIVATIONS[activation]
        self.norm = norm
        self.dropout = dropout
        self.out_dropout = out_dropout

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> dict[str, int]:
        """What is inside sees the inner width."""
        return {"dim": _hidden(facts)}

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """The features out, where they are others."""
        return {} if facts["dim_out"] is None else {"dim": facts["dim_out"]}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """There is an inner feature at least."""
        return width_problems(facts)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Transform each token."""
        own: dict[str, Any] = self._modules  # attributes of a module are looked up by a slow Python function
        x = own["up"](x)
        if self.pre_act is not None:
            x = self.pre_act(x)
        x = self.act(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        y: Tensor = own["down"](x)
        return F.dropout(y, self.out_dropout) if self.out_dropout and self.training else y


@register("glu")
class GLU(FeedForward):
    """Gated linear unit family (Shazeer 2020, arXiv:2002.05202): y = W_d (act(W_g x) * (W_u x)).

    With `silu` it is SwiGLU, with `gelu` GEGLU, with `relu` ReGLU, with `sigmoid` GLU, with `none` bilinear.

    Shapes:
        x: [B, L, dim] -> [B, L, dim], or [B, L, dim_out]

    Args:
        dim: features in and out.
        hidden: inner features; `mult * dim` by default.
        mult: inner width as a multiple of `dim`, used when `hidden` is not given; 8/3 keeps an MLP's parameters.
        activation: act, on the gate.
        bias: learn offsets on the maps W_g and W_u.
        dropout: probability of zeroing an inner feature, in training.
        norm: a norm on the inner features.
        init_std: standard deviation of the initial weights; torch's default when None.
        writes: residual writes of the model, for the initial scale of W_d.
        out_bias: learn an offset on W_d; as `bias` says by default.
        before: what W_g x and W_u x pass before act and product.
        dim_out: features out, where they are not those in.
    """

    def __init__(
        self,
        dim: Size = INHERIT,
        hidden: Size | None = None,
        mult: Annotated[float, Field(gt=0)] = 8 / 3,
        activation: Activation = "silu",
        bias: bool = False,
        dropout: Rate = 0.0,
        norm: Norm | None = None,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
        out_bias: bool | None = None,
        before: Gate | None = None,
        dim_out: Size | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden or int(mult * dim)
        self.gate = Linear(dim, hidden, bias, std=init_std)
        self.up = Linear(dim, hidden, bias, std=init_std)
        self.before = before
        self.down = Linear(hidden, dim_out or dim, bias if out_bias is None else out_bias, std=init_std, writes=writes)
        self.act = ACTIVATIONS[activation]
        self.norm = norm
        self.dropout = dropout

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> dict[str, int]:
        """What is inside sees the inner width."""
        return {"dim": _hidden(facts)}

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """The features out, where they are others."""
        return {} if facts["dim_out"] is None else {"dim": facts["dim_out"]}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """There is an inner feature at least."""
        return width_problems(facts)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Transform each token."""
        gate, up = self.gate(x), self.up(x)
        if self.before is not None:
            gate, up = self.before(gate, up)
        x = gated(gate, up, self.act)
        if self.norm is not None:
            x = self.norm(x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return self.down(x)


def width_problems(facts: Facts) -> list[Problem]:
    """A width derived from `mult` must hold a feature."""
    if _hidden(facts) >= 1:
        return []
    message = f"leaves no inner feature: {facts['mult']} * {facts['dim']} is less than 1"
    return [Problem("mult", message, facts["mult"], f"at least 1 / dim = {1 / facts['dim']:.4g}")]


def _hidden(facts: Facts) -> int:
    return int(facts["hidden"] or facts["mult"] * facts["dim"])
