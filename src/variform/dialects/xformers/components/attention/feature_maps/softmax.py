"""Positive random features of the softmax kernel."""

from __future__ import annotations

import math
from enum import Enum, auto
from typing import ClassVar

import torch
from torch import Tensor

from variform.dialects.xformers.components.attention.feature_maps.base import FeatureMap
from variform.ops.favor import Features, orthogonal_blocks
from variform.parts.attention.random_features import RandomFeatures


class NormDistribution(Enum):
    """The lengths of random directions: those of Gaussian vectors (`Xi`), or 1 (`Uniform`)."""

    Xi = auto()
    Uniform = auto()


class SoftMaxPositiveEstimators(FeatureMap):
    """Positive features with E[phi(q) . phi(k)] = exp(q . k temp^2) (Choromanski et al. 2020, arXiv:2009.14794).

    Shapes:
        [..., dim] -> [..., dim_features]

    Args:
        dim_features: number of features; even, but for `SMOrf`.
        iter_before_redraw: draw new random features after this many training calls; None never does.
        normalize_inputs: scale each input to the length sqrt(dim) first.
        epsilon: added to the features of a token, relative to its largest one.
        softmax_temp: inputs are multiplied by it; by dim^(-1/4) when negative.
    """

    kind: ClassVar[Features]

    def __init__(
        self,
        dim_features: int,
        iter_before_redraw: int | None = None,
        normalize_inputs: bool = False,
        epsilon: float = 1e-6,
        softmax_temp: float = -1.0,
    ) -> None:
        super().__init__(dim_features, iter_before_redraw, normalize_inputs, epsilon)
        self.softmax_temp = softmax_temp
        temperature = None if softmax_temp < 0 else softmax_temp
        self.native = RandomFeatures(None, dim_features, self.kind, iter_before_redraw, normalize_inputs, temperature)

    @property
    def features(self) -> Tensor:  # type: ignore[override]
        """The random directions, one a column; drawn at the first call, when the size of inputs is known."""
        return self.native.features

    def forward(self, x: Tensor) -> Tensor:
        """The features of each token."""
        projected, offset = self.native(x)[0]
        found: Tensor = (projected + offset - 0.5 * math.log(self.native.count)).exp()
        return (found + self.epsilon * found.amax(-1, keepdim=True)).to(x.dtype)

    @staticmethod
    @torch.no_grad()
    def _get_random_ortho_matrix(
        blocks: int,
        dim: int,
        device: torch.device | str | None = None,
        norm_distribution: NormDistribution = NormDistribution.Uniform,
    ) -> Tensor:
        """Random matrices [blocks, dim, dim] whose rows are orthogonal, of the lengths asked for."""
        rows = orthogonal_blocks(blocks, dim, device=device)
        if norm_distribution is NormDistribution.Xi:
            rows = rows * torch.randn(blocks, dim, dim, device=device).norm(dim=-1, keepdim=True)
        return rows


class SMOrf(SoftMaxPositiveEstimators):
    """exp(w . x' - |x'|^2 / 2) for orthogonal w, as long as Gaussian vectors are."""

    kind = "sm_orf"


class SMHyperbolic(SoftMaxPositiveEstimators):
    """As `SMOrf`, each direction with both signs: half as many directions, and a smaller variance."""

    kind = "sm_hyp"


class SMReg(SoftMaxPositiveEstimators):
    """As `SMHyperbolic`, all directions of length sqrt(dim): a regularised softmax, of smaller variance yet."""

    kind = "sm_reg"
