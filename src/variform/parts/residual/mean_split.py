"""A residual that treats the mean of the tokens and what is around it apart."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can
from variform.core.registry import register
from variform.parts.grid import refuse_unable
from variform.parts.kinds import Output, Residual, State, Streams


@register("mean_split")
class MeanSplitResidual(Residual):
    """MV-Split (Lu 2026, arXiv:2605.06169): factors for the mean of the tokens, and for the deviations from it.

        x_t <- x_t + beta (f_t - mean f) + alpha (mean f - mean x)

    The means are over the real tokens of the document. Where `causal`, the mean at t is over tokens up to t, so that
    nothing of the future reaches it and decoding carries a sum and a count; a token of its own length is then the mean
    of itself. With `learned`, alpha and beta are linear functions of mean f.

    Args:
        dim: features.
        alpha: initial factor on the means.
        beta: initial factor on the deviations.
        learned: whether the factors depend on the mean of the branch.
        causal: means of the past alone.

    Raises:
        ShapeError: a mask of pairs is given, which says nothing about a mean.
    """

    can: ClassVar[Can] = Can(attention_mask=False)
    reads: ClassVar[frozenset[str]] = frozenset({"valid", "segments", "mask"})
    stateful: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset({"dim", "causal"})

    def __init__(
        self,
        dim: Annotated[int, Field(gt=0)] = INHERIT,
        alpha: float = 0.0,
        beta: float = 0.03,
        learned: bool = False,
        causal: bool = inherit(False),
    ) -> None:
        super().__init__()
        self.initial = (alpha, beta)
        self.causal = causal
        self.alpha = nn.Parameter(torch.empty(dim))
        self.beta = nn.Parameter(torch.empty(dim))
        self.alpha_map = nn.Parameter(torch.empty(dim, dim)) if learned else None
        self.beta_map = nn.Parameter(torch.empty(dim, dim)) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Factors that do not depend on the mean."""
        with torch.no_grad():
            self.alpha.fill_(self.initial[0])
            self.beta.fill_(self.initial[1])
            for weight in (self.alpha_map, self.beta_map):
                if weight is not None:
                    weight.zero_()

    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Output:
        """Join; with a state, on from where it ended."""
        streams = streams or {}
        refuse_unable(self, streams)
        state = streams.get("state")
        both = torch.cat((x, branch), -1)
        means, new = self._means(both, streams.get("valid"), streams.get("segments"), state)
        mean_x, mean_f = means.to(x.dtype).chunk(2, -1)
        alpha = self.alpha if self.alpha_map is None else F.linear(mean_f, self.alpha_map, self.alpha)
        beta = self.beta if self.beta_map is None else F.linear(mean_f, self.beta_map, self.beta)
        y = x + beta * (branch - mean_f) + alpha * (mean_f - mean_x)
        return y if state is None else (y, {"state": new})

    def _means(
        self, x: Tensor, valid: Tensor | None, segments: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        """For each token, the mean of those it is averaged with, and the sums with which the next call goes on."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        real = wide.new_ones(x.shape[:2]) if valid is None else valid.to(wide.dtype)
        # What stands at padding may be anything, NaN too.
        wide = wide if valid is None else wide.masked_fill(~valid.unsqueeze(-1), 0)
        whole = torch.cat((wide, real.unsqueeze(-1)), -1)
        if segments is not None:
            seen = (segments.unsqueeze(2) == segments.unsqueeze(1)).to(wide.dtype)
            sums = (seen.tril() if self.causal else seen) @ whole
        else:
            sums = whole.cumsum(1) if self.causal else whole.sum(1, keepdim=True)
        if state is None:
            return sums[..., :-1] / sums[..., -1:].clamp(min=1), {}
        before = state["sums"].to(sums.dtype).unsqueeze(1)
        goes_on = None if segments is None else (segments == state["segment"].unsqueeze(1)).unsqueeze(-1)
        sums = sums + (before if goes_on is None else before * goes_on)
        return sums[..., :-1] / sums[..., -1:].clamp(min=1), self._kept(sums, real, segments, state)

    def _kept(self, sums: Tensor, real: Tensor, segments: Tensor | None, state: State) -> State:
        """The sums at the newest real token of each row, and its document; those of before where there is none."""
        steps = torch.arange(1, real.shape[1] + 1, device=real.device)
        newest = (real * steps).amax(1).long()
        place = (newest - 1).clamp(min=0)
        rows = torch.arange(real.shape[0], device=real.device)
        found = newest > 0
        kept = torch.where(found.unsqueeze(1), sums[rows, place].to(state["sums"].dtype), state["sums"])
        if segments is None:
            return {"sums": kept, "segment": state["segment"]}
        return {"sums": kept, "segment": torch.where(found, segments[rows, place].long(), state["segment"])}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Sums of the stream and of the branch, and how many tokens they are of."""
        wide = torch.promote_types(self.alpha.dtype, torch.float32)
        return {
            "sums": self.alpha.new_zeros(batch, 2 * self.alpha.shape[0] + 1, dtype=wide),
            "segment": torch.zeros(batch, dtype=torch.long, device=self.alpha.device),
        }
