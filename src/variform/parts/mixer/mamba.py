"""A selective state space in place of attention."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Cost, Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.ops.align import Aligned, align, restore, starts_of
from variform.ops.scan import selective_scan, short_convolution
from variform.parts.grid import refuse_unable
from variform.parts.kinds import Mixer, Output, State, Streams
from variform.parts.linear import Linear
from variform.parts.mixer.s4d import step_problems

Size = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


class SelectiveStateSpace(nn.Module):
    """A short convolution, and a state space whose steps, B and C are read off each token.

    Args:
        inner: features.
        state: numbers of state a feature.
        width: tokens that the convolution sees.
        rank: size of the bottleneck from which the steps are read.
        steps: the least and the largest step at the start.
        offset: the convolution has an offset.
    """

    def __init__(self, inner: int, state: int, width: int, rank: int, steps: tuple[float, float], offset: bool) -> None:
        super().__init__()
        self.state, self.rank, self.steps = state, rank, steps
        self.conv = nn.Parameter(torch.empty(inner, width))
        self.conv_bias = nn.Parameter(torch.empty(inner)) if offset else None
        self.read = Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Parameter(torch.empty(inner, rank))
        self.step_bias = nn.Parameter(torch.empty(inner))
        self.log_a = nn.Parameter(torch.empty(inner, state))
        self.skip = nn.Parameter(torch.empty(inner))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A = -1, -2, ..., -N for each feature; steps spread evenly on a logarithmic scale."""
        low, high = (math.log(step) for step in self.steps)
        with torch.no_grad():
            bound = self.conv.shape[1] ** -0.5
            self.conv.uniform_(-bound, bound)
            if self.conv_bias is not None:
                self.conv_bias.uniform_(-bound, bound)
            orders = torch.arange(1, self.state + 1, dtype=self.log_a.dtype, device=self.log_a.device)
            self.log_a.copy_(orders.log().expand_as(self.log_a))
            self.skip.fill_(1.0)
            self.step.uniform_(-(self.rank**-0.5), self.rank**-0.5)
            step = (torch.rand_like(self.step_bias) * (high - low) + low).exp()
            self.step_bias.copy_(step + (-torch.expm1(-step)).log())  # softplus of this is the step

    def forward(
        self, x: Tensor, real: Tensor | None, starts: Tensor | None, before: Tensor | None, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The convolved and scanned sequence, and the last state.

        Shapes:
            x: [B, L, inner], real and starts: [B, L], before: [B, width - 1, inner], initial: [B, inner, state]
        """
        u = F.silu(short_convolution(x, self.conv, self.conv_bias, before, starts))
        read, rest = self.read(u), self.rank + self.state
        rank, b, c = read[..., : self.rank], read[..., self.rank : rest], read[..., rest:]
        dt = F.softplus(F.linear(rank, self.step, self.step_bias))
        if real is not None:
            dt = dt.masked_fill(~real[..., None], 0)
        y, last = selective_scan(u, dt, -self.log_a.exp(), b, c, initial, starts)
        return y + self.skip * u, last


@register("mamba")
class Mamba(Mixer):
    """Mamba's selective state space (Gu and Dao 2023, arXiv:2312.00752).

    x, z = W_in input; u = silu(conv(x)); dt, B, C read off u; h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t;
    y = W_out ((h_t C_t + D u_t) * silu(z)).
    Without `causal` a second state space reads the sequence from its end, with weights of its own, and the two
    results are added before the gate, as in Vision Mamba (arXiv:2401.09417). A document sees nothing of those before.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        dim: features in and out.
        expand: inner features as a multiple of `dim`.
        state: numbers of state a feature (N).
        width: tokens that the short convolution sees.
        rank: size of the bottleneck from which the steps dt are read; dim / 16, rounded up, by default.
        min_step: the least step at the start.
        max_step: the largest step at the start.
        causal: only the past.
        bias: W_in and W_out have offsets.
        conv_bias: the short convolution has one.
        init_std: standard deviation of the initial W_in and W_out; torch's default when None.
        writes: residual writes of the model, for the initial scale of W_out.
    """

    can: ClassVar[Can] = Can(attention_mask=False, cross=False)
    reads: ClassVar[frozenset[str]] = frozenset({"valid", "segments"})
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        dim: Size = INHERIT,
        expand: Size = 2,
        state: Size = 16,
        width: Size = 4,
        rank: Size | None = None,
        min_step: Positive = 0.001,
        max_step: Positive = 0.1,
        causal: bool = inherit(False),
        bias: bool = False,
        conv_bias: bool = True,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
    ) -> None:
        super().__init__()
        self.inner = expand * dim
        self.width = width
        self.causal = causal
        self.inputs = Linear(dim, 2 * self.inner, bias, std=init_std)
        self.out = Linear(self.inner, dim, bias, std=init_std, writes=writes)
        settings = (self.inner, state, width, rank or -(-dim // 16), (min_step, max_step), conv_bias)
        self.forth = SelectiveStateSpace(*settings)
        self.back = None if causal else SelectiveStateSpace(*settings)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The steps are in order."""
        return step_problems(facts)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run over the sequence; with a state, on from where it ended."""
        refuse_unable(self, streams)
        valid, segments, state = streams.get("valid"), streams.get("segments"), streams.get("state")
        aligned: Aligned | None = None
        real = None
        if valid is not None:
            x, aligned = align(x, valid)
            real = aligned.real
            segments = None if segments is None else segments.gather(1, aligned.order)
        u, gate = self.inputs(x).chunk(2, -1)
        if real is not None:
            u = u.masked_fill(~real[..., None], 0)
        starts = None
        if segments is not None:
            starts = starts_of(segments, real, None if state is None else state["segment"])
        before, initial = (None, None) if state is None else (state["x"], state["h"])
        y, last = self.forth(u, real, starts, before, initial)
        if self.back is not None:
            y = y + self._backwards(u, real, segments)
        out = self.out(y * F.silu(gate))
        if aligned is not None:
            out = restore(out, aligned)
        if state is None:
            return out
        new = {"x": self._kept(state["x"], u, aligned, starts), "h": last.to(state["h"].dtype)}
        return out, {"state": {**new, "segment": _last_segment(state["segment"], segments, aligned)}}

    def _backwards(self, u: Tensor, real: Tensor | None, segments: Tensor | None) -> Tensor:
        assert self.back is not None
        real = None if real is None else real.flip(1)
        starts = None if segments is None else starts_of(segments.flip(1), real)
        y: Tensor = self.back(u.flip(1), real, starts, None, None)[0]
        return y.flip(1)

    def _kept(self, before: Tensor, u: Tensor, aligned: Aligned | None, starts: Tensor | None) -> Tensor:
        """The newest tokens for the next call's convolution, zeros where they are of another document."""
        whole = torch.cat((before, u.to(before.dtype)), 1)
        held = None if starts is None else F.pad(starts.long().cumsum(1), (self.width - 1, 0))
        if aligned is None:
            kept = whole[:, u.shape[1] :]
            runs = None if held is None else held[:, u.shape[1] :]
        else:
            places = aligned.counts[:, None] + torch.arange(self.width - 1, device=u.device)
            kept = whole.gather(1, places[..., None].expand(-1, -1, whole.shape[2]))
            runs = None if held is None else held.gather(1, places)
        return kept if runs is None or held is None else kept.masked_fill((runs != held[:, -1:])[..., None], 0)

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The newest tokens and the state, of constant size."""
        like = self.inputs.weight
        wide = torch.float32 if like.dtype.itemsize < 4 else like.dtype
        return {
            "x": like.new_zeros(batch, self.width - 1, self.inner),
            "h": like.new_zeros(batch, self.inner, self.forth.state, dtype=wide),
            "segment": torch.zeros(batch, dtype=torch.long, device=like.device),
        }

    def cost(self, *args: Any, **kwargs: Any) -> Cost | None:
        """The maps as products; the scan as nine operations for each number of state, those with the gates included."""
        batch, length, dim = args[0].shape
        space = self.forth
        reading = 2 * self.inner * (2 * space.rank + 2 * space.state)
        scanning = self.inner * (9 * space.state + 2 * self.width)
        directions = 1 if self.back is None else 2
        flops = batch * length * (6 * dim * self.inner + directions * (reading + scanning))
        return Cost(flops, flops, 2 * flops)


def _last_segment(before: Tensor, segments: Tensor | None, aligned: Aligned | None) -> Tensor:
    if segments is None:
        return before
    if aligned is None:
        return segments[:, -1].to(before.dtype)
    newest = segments.gather(1, (aligned.counts - 1).clamp(min=0)[:, None])[:, 0].to(before.dtype)
    return torch.where(aligned.counts > 0, newest, before)
