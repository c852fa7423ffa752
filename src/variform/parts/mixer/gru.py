"""Gated recurrence: one step after another."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.part import Can
from variform.core.registry import register
from variform.errors import ConfigError
from variform.ops.align import Aligned, align, restore
from variform.parts.grid import refuse_unable
from variform.parts.kinds import Mixer, Output, State, Streams

Size = Annotated[int, Field(gt=0)]


@register("gru")
class GatedRecurrentUnit(Mixer):
    """A gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), in torch's form:

    r, z = sigmoid(W x_t + U h_{t-1} + b), n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + c_n)),
    h_t = (1 - z) n + z h_{t-1}.

    It is causal by construction, and its decode state is one vector a row.

    Shapes:
        x: [B, L, dim] -> [B, L, dim_out]

    Args:
        dim: features in.
        dim_out: features of the state, which are those that go out; `dim` by default.
        bias: learn offsets.
        like: a `torch.nn.GRU` of one layer and one direction whose weights it begins with.

    Raises:
        ConfigError: `like` is of another form.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"valid"})
    can: ClassVar[Can] = Can(attention_mask=False, packed=False, cross=False)
    stateful: ClassVar[bool] = True

    def __init__(self, dim: Size = INHERIT, dim_out: Size | None = None, bias: bool = True, like: Any = None) -> None:
        super().__init__()
        self.size = dim_out or dim
        self.weight_ih = nn.Parameter(torch.empty(3 * self.size, dim))
        self.weight_hh = nn.Parameter(torch.empty(3 * self.size, self.size))
        self.bias_ih = nn.Parameter(torch.empty(3 * self.size)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(3 * self.size)) if bias else None
        self.reset_parameters()
        if like is not None:
            self._begin_with(like)

    def reset_parameters(self) -> None:
        """Uniform in +- dim_out^-0.5, as torch does."""
        for param in self.parameters():
            nn.init.uniform_(param, -1 / math.sqrt(self.size), 1 / math.sqrt(self.size))

    def _begin_with(self, like: nn.GRU) -> None:
        names = [name for name, _ in self.named_parameters()]
        theirs = dict(like.named_parameters())
        if set(theirs) != {f"{name}_l0" for name in names}:
            raise ConfigError("like: a torch.nn.GRU of one layer and one direction is needed", path="like")
        with torch.no_grad():
            for name, param in self.named_parameters():
                param.copy_(theirs[f"{name}_l0"])

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run over the sequence; with a state, on from where it ended."""
        refuse_unable(self, streams)
        valid, state = streams.get("valid"), streams.get("state")
        aligned: Aligned | None = None
        if valid is not None:
            x, aligned = align(x, valid)
        h = x.new_zeros(x.shape[0], self.size) if state is None else state["h"].to(x.dtype)
        weights: list[Tensor] = [
            w for w in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh) if w is not None
        ]
        y, last = torch.gru(x, h[None], weights, self.bias_ih is not None, 1, 0.0, self.training, False, True)
        if aligned is None:
            return y if state is None else (y, {"state": {"h": last[0]}})
        if state is None:
            return restore(y, aligned)
        newest = (aligned.counts - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.size)
        kept = torch.where((aligned.counts > 0)[:, None], y.gather(1, newest)[:, 0], h)
        return restore(y, aligned), {"state": {"h": kept}}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Zeros."""
        return {"h": self.weight_hh.new_zeros(batch, self.size)}
