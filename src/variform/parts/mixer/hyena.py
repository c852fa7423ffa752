"""Gated long convolutions in place of attention."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Cost
from variform.core.registry import register
from variform.errors import ShapeError
from variform.ops.align import Aligned, align, restore
from variform.ops.fourier import fourier_flops
from variform.ops.long_convolution import causal_convolution, causal_convolution_flops, convolution
from variform.ops.scan import short_convolution
from variform.parts.attention.kv_cache import write
from variform.parts.grid import refuse_unable
from variform.parts.kinds import Mixer, Output, State, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]

FEW = 16
"""New tokens up to this number are summed one by one when decoding; more by transforms."""


class Filters(nn.Module):
    """Filters as functions of the lag: a network with sines on codes of the lag, times a decay.

    h_l = (exp(-|alpha| t) + 0.05) MLP(t, cos, sin), t = l / (max_len - 1)

    Args:
        count: filters, each of `dim` features.
        dim: features.
        width: inner features of the network.
        layers: its inner layers.
        bands: frequencies of the codes.
        frequency: factor on what the sines are taken of.
        max_len: the longest filter.
    """

    def __init__(
        self, count: int, dim: int, width: int, layers: int, bands: int, frequency: float, max_len: int
    ) -> None:
        super().__init__()
        self.count, self.dim, self.bands, self.frequency, self.max_len = count, dim, bands, frequency, max_len
        sizes = [1 + 2 * bands, *[width] * layers]
        self.layers = nn.ModuleList([Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.last = Linear(sizes[-1], count * dim, bias=False)

    def forward(self, length: int) -> Tensor:
        """The filters at lags 0 .. length - 1, [count, length, dim], in float32 at least: the sines are steep."""
        like = _wide(self.last.weight)
        lag = torch.arange(length, device=like.device, dtype=like.dtype)
        t = (lag / max(1, self.max_len - 1))[:, None]
        bands = torch.linspace(1e-4, max(1e-4, self.bands - 1), self.bands, device=like.device, dtype=lag.dtype)
        turn = 2 * math.pi * lag[:, None] / self.max_len * bands
        x = torch.cat((t, turn.cos(), -turn.sin()), 1)
        for layer in self.layers:
            assert isinstance(layer, Linear)
            x = (self.frequency * F.linear(x, _wide(layer.weight), _wide(layer.bias))).sin()
        fast, slow = math.log(1e-2) / 0.3, math.log(1e-2) / 1.5
        rates = torch.linspace(slow, fast, self.dim, device=like.device, dtype=lag.dtype)
        decay = (rates * t).exp() + 0.05
        return (F.linear(x, like).view(length, self.count, self.dim) * decay[:, None]).transpose(0, 1)


@register("hyena")
class Hyena(Mixer):
    """Gated convolutions as long as the sequence (Hyena, Poli et al. 2023, arXiv:2302.10866).

    v, x_1 .. x_N = short(W_in x); z = v; z = h_n * (x_n z) + d_n (x_n z) for n = N .. 2; y = W_out (x_1 z), where the
    filters h_n are functions of the lag, so that their number of parameters does not depend on their length.
    Without `causal` they reach to both sides, with other filters towards later tokens.
    Decoding keeps what the filters read: time and memory of a step grow with the tokens so far.

    Shapes:
        x: [B, L, dim] -> [B, L, dim], L at most `max_seq_len`

    Args:
        dim: features in and out.
        order: the number N of gates, one more than of long convolutions.
        width: inner features of the network that makes the filters.
        layers: its inner layers.
        bands: frequencies in the codes of the lag.
        frequency: factor on what the network's sines are taken of.
        short: tokens that the short convolution sees.
        max_seq_len: length of the filters; lags are measured by it.
        causal: only the past.
        bias: W_in and W_out have offsets.
        init_std: standard deviation of the initial W_in and W_out; torch's default when None.
        writes: residual writes of the model, for the initial scale of W_out.
    """

    can: ClassVar[Can] = Can(attention_mask=False, packed=False, cross=False)
    reads: ClassVar[frozenset[str]] = frozenset({"valid", "cache"})
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        dim: Size = INHERIT,
        order: Annotated[int, Field(ge=2)] = 2,
        width: Size = 64,
        layers: Size = 3,
        bands: Size = 1,
        frequency: Positive = 10.0,
        short: Size = 3,
        max_seq_len: Size = INHERIT,
        causal: bool = inherit(False),
        bias: bool = True,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
    ) -> None:
        super().__init__()
        self.dim, self.order, self.causal, self.max_seq_len = dim, order, causal, max_seq_len
        self.inputs = Linear(dim, (order + 1) * dim, bias, std=init_std)
        self.out = Linear(dim, dim, bias, std=init_std, writes=writes)
        self.short = nn.Parameter(torch.empty((order + 1) * dim, short))
        self.skip = nn.Parameter(torch.empty(order - 1, dim))
        count = (order - 1) * (1 if causal else 2)
        self.filters = Filters(count, dim, width, layers, bands, frequency, max_seq_len)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The short convolution as torch's, D from N(0, 1)."""
        bound = self.short.shape[1] ** -0.5
        nn.init.uniform_(self.short, -bound, bound)
        nn.init.normal_(self.skip)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Convolve and gate; with a state, with what came before."""
        refuse_unable(self, streams)
        if x.shape[1] > self.max_seq_len:
            raise ShapeError(
                f"the filters of the mixer 'hyena' are {self.max_seq_len} tokens long (max_seq_len), and the sequence "
                f"has {x.shape[1]}"
            )
        valid, state = streams.get("valid"), streams.get("state")
        aligned: Aligned | None = None
        if valid is not None:
            x, aligned = align(x, valid)
        u = self.inputs(x)
        mixed = short_convolution(u, self.short, None, None if state is None else state["x"])
        if aligned is not None:
            mixed = mixed.masked_fill(~aligned.real[..., None], 0)
        value, *gates = mixed.chunk(self.order + 1, -1)
        new: State = {}
        taps = self.filters(x.shape[1]) if state is None else state["h"]
        for place in range(self.order - 2, -1, -1):
            value = value * gates[place + 1]
            if state is None:
                long = self._convolved(value, taps, place)
            else:
                long, new[str(place)] = _continued(value, state[str(place)], taps[place], streams, aligned)
            value = torch.addcmul(long, self.skip[place], value)
        out = self.out(value * gates[0])
        if aligned is not None:
            out = restore(out, aligned)
        if state is None:
            return out
        return out, {"state": {**new, "h": state["h"], "x": _newest(state["x"], u, aligned)}}

    def _convolved(self, value: Tensor, taps: Tensor, place: int) -> Tensor:
        wide = _wide(value)
        if self.causal:
            return causal_convolution(wide, taps[place]).to(value.dtype)
        return convolution(wide, taps[place], taps[self.order - 1 + place]).to(value.dtype)

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The filters, what they read, and the newest tokens for the short convolution."""
        like = self.inputs.weight
        held = {str(place): like.new_zeros(batch, 1, max_len + 1, self.dim) for place in range(self.order - 1)}
        newest = like.new_zeros(batch, self.short.shape[1] - 1, self.inputs.out_features)
        return {**held, "h": self.filters(max_len), "x": newest}

    def cost(self, *args: Any, **kwargs: Any) -> Cost | None:
        """The maps, the network that makes the filters, and the convolutions by formula."""
        batch, length, dim = args[0].shape
        network = sum(w.numel() for layer in (*self.filters.layers, self.filters.last) for w in [layer.weight])
        maps = 2 * batch * length * dim * dim * (self.order + 2)
        if self.causal:
            long = causal_convolution_flops(batch, length, dim)
        else:
            long = dim * (2 * batch + 1) * fourier_flops(2 * length) // 2 + 6 * batch * dim * (length + 1)
        short = 2 * batch * length * self.short.numel()
        flops = maps + 2 * length * network * (1 if args and "state" not in args[1] else 0)
        flops += (self.order - 1) * long + short
        return Cost(flops, flops, 2 * flops)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def _continued(
    value: Tensor, held: Tensor, taps: Tensor, streams: Streams, aligned: Aligned | None
) -> tuple[Tensor, Tensor]:
    """The convolution of new tokens with all so far, which are put into the buffer.

    Shapes:
        value: [B, L, dim], held: [B, 1, slots, dim], taps: [slots or less, dim]
    """
    cache = dict(streams["cache"])
    if aligned is not None and cache["slots"] is not None:
        cache["slots"] = cache["slots"].gather(1, aligned.order)
    held = write(held, value.unsqueeze(1), cache)
    slots: Tensor | None = cache["slots"]
    seen, length = _wide(held[:, 0, : taps.shape[0]]), value.shape[1]
    start: int | None = cache["start"]
    if slots is None:
        assert start is not None
        if length > FEW:
            return causal_convolution(seen[:, : start + length], taps)[:, start:].to(value.dtype), held
        ends = range(start + 1, start + length + 1)
        return torch.stack([(seen[:, :n] * taps[:n].flip(0)).sum(1) for n in ends], 1).to(value.dtype), held
    slots = slots.clamp(max=seen.shape[1] - 1)
    if length > FEW:
        whole = causal_convolution(seen, taps)
        return whole.gather(1, slots[..., None].expand(-1, -1, whole.shape[2])).to(value.dtype), held
    steps = torch.arange(seen.shape[1], device=seen.device)
    out = []
    for place in range(length):
        lag = slots[:, place, None] - steps
        reached = taps[lag.clamp(min=0)].masked_fill((lag < 0)[..., None], 0)
        out.append((reached * seen).sum(1))
    return torch.stack(out, 1).to(value.dtype), held


def _newest(before: Tensor, u: Tensor, aligned: Aligned | None) -> Tensor:
    """The newest tokens of each row."""
    whole = torch.cat((before, u.to(before.dtype)), 1)
    if aligned is None:
        return whole[:, u.shape[1] :]
    places = aligned.counts[:, None] + torch.arange(before.shape[1], device=u.device)
    return whole.gather(1, places[..., None].expand(-1, -1, whole.shape[2]))
