"""Polar position embedding: what a feature is, and where it is, told apart as length and angle."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.parts.kinds import Rotation

Size = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


ROOT_2 = math.sqrt(2)


@register("polar")
class PolarRotation(Rotation):
    """Polar coordinate position embedding (PoPE, Gopalakrishnan et al. 2025, arXiv:2509.10534).

    Feature d of a query at position p becomes the length softplus(q_d) at the angle p w_d, w_d = base^(-d / D), and so
    does a key's at p w_d + b_d with a learned phase b in [-2 pi, 0] for each head; both as cosine and sine, so that a
    product is sum_d softplus(q_d) softplus(k_d) cos((p_k - p_q) w_d + b_d). Phases may be of query heads, which then
    stand at p w_d - b_d: the products are the same, and heads that read one key have phases of their own. Keys are
    multiplied by `gain`, sqrt(2) by default, so that the usual factor on products, one over the root of their now 2 D
    features, acts as D^-0.5.

    Shapes:
        q: [B, H, L, dim_head], k: [B, Hk, L, dim_head] -> the same with 2 dim_head features

    Args:
        dim_head: features of one head.
        kv_heads: number of key heads.
        base: sets the longest wavelength.
        uniform_start: begin with phases drawn from [-2 pi, 0]; with none otherwise.
        scale: factor on queries and keys before the softplus, where a norm left them of another size.
        gain: factor on keys after it.
        heads: number of query heads.
        phases: "keys" or "queries", whose heads have a phase.
    """

    widening: ClassVar[int] = 2

    def __init__(
        self,
        dim_head: Size = INHERIT,
        kv_heads: Size = INHERIT,
        base: Positive = 10000.0,
        uniform_start: bool = False,
        scale: Positive = 1.0,
        gain: Positive = ROOT_2,
        heads: Size = INHERIT,
        phases: Literal["keys", "queries"] = "keys",
    ) -> None:
        super().__init__()
        self.base = base
        self.uniform_start = uniform_start
        self.scale = scale
        self.gain = gain
        self.of_queries = phases == "queries"
        self.phase = nn.Parameter(torch.empty(heads if self.of_queries else kv_heads, 1, dim_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No phases, or uniform ones."""
        with torch.no_grad():
            if self.uniform_start:
                self.phase.uniform_(-2 * math.pi, 0.0)
            else:
                self.phase.zero_()

    def forward(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Turn both sides to their positions."""
        phase = self.phase.clamp(-2 * math.pi, 0.0)
        of_q, of_k = (-phase, None) if self.of_queries else (None, phase)
        return self._turned(q, q_positions, of_q, 1.0), self._turned(k, k_positions, of_k, self.gain)

    def _turned(self, x: Tensor, positions: Tensor | None, phase: Tensor | None, gain: float) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        dim, device = x.shape[-1], x.device
        if positions is None:
            positions = torch.arange(x.shape[2], device=device)
        steps = torch.arange(dim, dtype=torch.float64, device=device) / dim
        # Angles are taken in float64, as rotary ones are: float32 is off by 1e-3 rad at position 10^5.
        turn = positions.to(torch.float64).unsqueeze(-1) * self.base**-steps
        turn = turn.unsqueeze(1) if positions.dim() == 2 else turn
        cos, sin = turn.cos().to(wide), turn.sin().to(wide)
        if phase is not None:
            cos_b, sin_b = phase.to(wide).cos(), phase.to(wide).sin()
            cos, sin = cos * cos_b - sin * sin_b, sin * cos_b + cos * sin_b
        length = F.softplus((x if self.scale == 1.0 else x * self.scale).to(wide))
        length = length if gain == 1.0 else length * gain
        return torch.cat((length * cos, length * sin), -1).to(x.dtype)
