"""How far vectors are from a standard Gaussian, told by their projections on random lines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from variform.errors import ConfigError


@dataclass(frozen=True)
class Sketch:
    """Sketched isotropic Gaussian regularisation, SIGReg (Balestriero and LeCun 2025, arXiv:2511.08544).

    The mean over random unit vectors u of the Epps-Pulley statistic of the projections x_n . u,

        integral over t in the domain of |1/N sum_n e^(i t x_n . u) - e^(-t^2 / 2)|^2 e^(-t^2 / 2) dt,

    by the trapezoidal rule. It is 0 where every projection is N(0, 1); the factor N of the paper is left out.

    Shapes:
        x: [.., dim] -> a scalar

    Args:
        slices: how many unit vectors are drawn, anew in each call.
        domain: from where to where t goes.
        knots: at how many t the integrand is computed.

    Raises:
        ConfigError: sizes that are none.
    """

    slices: int = 1024
    domain: tuple[float, float] = (-5.0, 5.0)
    knots: int = 17

    def __post_init__(self) -> None:
        if self.slices < 1:
            raise ConfigError("must be positive", path="slices", value=self.slices)
        if self.knots < 2:
            raise ConfigError("an integral needs two at least", path="knots", value=self.knots)
        if not self.domain[0] < self.domain[1]:
            raise ConfigError("the first number must be the smaller", path="domain", value=self.domain)

    def __call__(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """The statistic of the vectors that count, [..] bool, all by default; 0 without vectors."""
        if counted is None:
            counted = torch.ones_like(x[..., 0], dtype=torch.bool)
        x, weights = x.reshape(-1, x.shape[-1]), counted.reshape(-1, 1, 1).to(x.dtype)
        total = weights.sum()
        weights = weights / total.clamp(min=1)
        lines = F.normalize(torch.randn(self.slices, x.shape[-1], dtype=x.dtype, device=x.device), dim=-1)
        t = torch.linspace(*self.domain, self.knots, dtype=x.dtype, device=x.device)
        angles = (x @ lines.T).unsqueeze(-1) * t
        wanted = (-0.5 * t.square()).exp()
        cosines, sines = ((wave * weights).sum(0) for wave in (angles.cos(), angles.sin()))
        error = (cosines - wanted).square() + sines.square()
        found: Tensor = torch.trapezoid(error * wanted, t, dim=-1).mean()
        return torch.where(total > 0, found, 0.0)
