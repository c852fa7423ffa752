"""A diagonal state space with fixed steps in place of attention."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Cost, Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.ops.align import align, restore
from variform.ops.diagonal import CHUNK, diagonal_state_space
from variform.parts.grid import refuse_unable
from variform.parts.kinds import Mixer, Output, State, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class DiagonalStateSpace(nn.Module):
    """The parameters of one direction: steps, A, C.

    Args:
        dim: features.
        state: complex numbers of state a feature.
        start: where A begins, "lin" or "inv".
        steps: the least and the largest step at the start.
    """

    def __init__(self, dim: int, state: int, start: str, steps: tuple[float, float]) -> None:
        super().__init__()
        self.start, self.steps = start, steps
        self.log_step = nn.Parameter(torch.empty(dim))
        self.log_rate = nn.Parameter(torch.empty(dim, state))
        self.turn = nn.Parameter(torch.empty(dim, state))
        self.weight = nn.Parameter(torch.empty(dim, 2, state))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A_n = -1/2 + i pi n (S4D-Lin), or -1/2 + i (2N / pi) (2N / (2n + 1) - 1) (S4D-Inv); C from N(0, 1)."""
        low, high = (math.log(step) for step in self.steps)
        with torch.no_grad():
            self.log_step.uniform_(low, high)
            self.log_rate.fill_(math.log(0.5))
            count = self.turn.shape[1]
            order = torch.arange(count, dtype=self.turn.dtype, device=self.turn.device)
            inverse = 2 * count / math.pi * (2 * count / (2 * order + 1) - 1)
            self.turn.copy_((math.pi * order if self.start == "lin" else inverse).expand_as(self.turn))
            self.weight.normal_(0.0, 0.5**0.5)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Convolve [B, L, dim], and the last state."""
        decay, weight = self.discrete()
        return diagonal_state_space(x, decay, weight, state)

    def discrete(self) -> tuple[Tensor, Tensor]:
        """dt A and C (exp(dt A) - 1) / A, complex numbers as pairs, [dim, 2, state], in float32 at least."""
        wide = torch.float32 if self.turn.dtype.itemsize < 4 else self.turn.dtype
        step = self.log_step.to(wide).exp()[:, None]
        rate, turn = -self.log_rate.to(wide).exp(), self.turn.to(wide)
        decay = torch.stack((rate * step, turn * step), 1)
        # exp(z) - 1 = expm1(re) cos(im) + (cos(im) - 1) + i exp(re) sin(im), without the cancellation near 0.
        half = (decay[:, 1] / 2).sin()
        real = torch.expm1(decay[:, 0]) * decay[:, 1].cos() - 2 * half.square()
        imaginary = decay[:, 0].exp() * decay[:, 1].sin()
        size = rate.square() + turn.square()
        factor_re, factor_im = (real * rate + imaginary * turn) / size, (imaginary * rate - real * turn) / size
        c_re, c_im = self.weight[:, 0].to(wide), self.weight[:, 1].to(wide)
        weight = torch.stack((c_re * factor_re - c_im * factor_im, c_re * factor_im + c_im * factor_re), 1)
        return decay, weight


@register("s4d")
class S4D(Mixer):
    """A diagonal state space layer (Gu et al. 2022, arXiv:2206.11893).

    h' = A h + u, y = 2 Re(C h) + D u for each feature with A diagonal and complex, held over steps of learned length;
    the result is W gelu(y), gated: half of its features times the sigmoid of the others. Without `causal` a second
    state space reads the sequence from its end, and both are added.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        dim: features in and out.
        state: numbers of state a feature, even: complex ones come in pairs of conjugates.
        start: where A begins: "lin" is S4D-Lin, "inv" S4D-Inv.
        min_step: the least step at the start.
        max_step: the largest step at the start.
        causal: only the past.
        dropout: probability of zeroing a feature of the result, in training.
        bias: W has an offset.
        init_std: standard deviation of the initial W; torch's default when None.
        writes: residual writes of the model, for the initial scale of W.
    """

    can: ClassVar[Can] = Can(attention_mask=False, packed=False, cross=False)
    reads: ClassVar[frozenset[str]] = frozenset({"valid"})
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        dim: Size = INHERIT,
        state: Size = 64,
        start: Literal["lin", "inv"] = "lin",
        min_step: Positive = 0.001,
        max_step: Positive = 0.1,
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        bias: bool = True,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.state = state // 2
        self.causal = causal
        self.dropout = dropout
        settings = (dim, self.state, start, (min_step, max_step))
        self.forth = DiagonalStateSpace(*settings)
        self.back = None if causal else DiagonalStateSpace(*settings)
        self.skip = nn.Parameter(torch.empty(dim))
        self.out = Linear(dim, 2 * dim, bias, std=init_std, writes=writes)
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Complex numbers come in pairs, and steps in order."""
        found = step_problems(facts)
        if facts["state"] % 2:
            message = "must be even: complex numbers come in pairs of conjugates"
            near = f"nearest: {facts['state'] - 1 or 2} or {facts['state'] + 1}"
            found.append(Problem("state", message, facts["state"], near))
        return found

    def reset_parameters(self) -> None:
        """D from N(0, 1)."""
        nn.init.normal_(self.skip)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run over the sequence; with a state, on from where it ended."""
        refuse_unable(self, streams)
        valid, state = streams.get("valid"), streams.get("state")
        u = x if valid is None else x.masked_fill(~valid[..., None], 0)
        wide = u.float() if u.dtype.itemsize < 4 else u
        y, last = self._forth(wide, valid, None if state is None else state["h"])
        if self.back is not None:
            y = y + self._back(wide, valid)
        out = F.glu(self.out(F.gelu(y.to(x.dtype) + self.skip * u)), -1)
        if self.dropout and self.training:
            out = F.dropout(out, self.dropout)
        return out if state is None else (out, {"state": {"h": last}})

    def _forth(self, u: Tensor, valid: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if valid is None:
            return self.forth(u, state)  # type: ignore[no-any-return]
        # With zeros before the first token a row ends with its last one. What came before them decays by the tokens
        # alone, and is added to rows that begin with their first.
        tokens, aligned = align(u, valid, "right")
        y, last = self.forth(tokens, None)
        y = restore(y, aligned)
        if state is None:
            return y, last
        silent, left = align(torch.zeros_like(u), valid)
        decay, _ = self.forth.discrete()
        size, turn = decay[:, 0] * left.counts[:, None, None], decay[:, 1] * left.counts[:, None, None]
        real, imaginary = size.exp() * turn.cos(), size.exp() * turn.sin()
        old_re, old_im = state[:, :, 0], state[:, :, 1]
        old = torch.stack((real * old_re - imaginary * old_im, real * old_im + imaginary * old_re), 2)
        return y + restore(self.forth(silent, state)[0], left), last + old

    def _back(self, u: Tensor, valid: Tensor | None) -> Tensor:
        assert self.back is not None
        if valid is None:
            y: Tensor = self.back(u.flip(1), None)[0]
            return y.flip(1)
        tokens, aligned = align(u, valid)
        return restore(self.back(tokens.flip(1), None)[0].flip(1), aligned)

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The state, of constant size."""
        like = self.out.weight
        wide = torch.float32 if like.dtype.itemsize < 4 else like.dtype
        return {"h": like.new_zeros(batch, self.dim, 2, self.state, dtype=wide)}

    def cost(self, *args: Any, **kwargs: Any) -> Cost | None:
        """Products within chunks, with their states and of W; making the kernel is independent of the length."""
        batch, length, dim = args[0].shape
        size = min(CHUNK, length)
        count = -(-length // size)
        tokens, rest = batch * size * count, length - size * (count - 1)
        numbers = 4 * self.state
        states = (tokens if count > 1 else 0) + tokens + batch * rest
        one = dim * (2 * size * tokens + numbers * states)
        flops = (1 if self.back is None else 2) * one + 4 * batch * length * dim * dim
        return Cost(flops, flops, 2 * flops)


def step_problems(facts: Facts) -> list[Problem]:
    """The least step is not above the largest."""
    low, high = facts["min_step"], facts["max_step"]
    if low <= high:
        return []
    return [Problem("min_step", f"is above max_step = {high}", low, f"at most {high}")]
