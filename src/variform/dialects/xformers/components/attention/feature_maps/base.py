"""What a feature map is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass

from torch import Tensor, nn


@dataclass
class FeatureMapConfig:
    """The configuration of a feature map.

    Args:
        name: of `FeatureMapType`.
        dim_features: number of features.
        iter_before_redraw: draw new random features after this many training calls; None never does.
        normalize_inputs: scale inputs to one length first.
        epsilon: added to the features of a token, relative to its largest one.
    """

    name: str
    dim_features: int
    iter_before_redraw: int | None = None
    normalize_inputs: bool = False
    epsilon: float = 1e-6


class FeatureMap(nn.Module):
    """Maps [..., dim] to [..., dim_features], so that products of features stand for attention weights.

    Args:
        dim_features: number of features.
        iter_before_redraw: draw new random features after this many training calls; None never does.
        normalize_inputs: scale inputs to one length first.
        epsilon: added to the features of a token, relative to its largest one.
    """

    features: Tensor

    def __init__(
        self,
        dim_features: int,
        iter_before_redraw: int | None = None,
        normalize_inputs: bool = False,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        self.dim_features = dim_features
        self.iter_before_redraw = iter_before_redraw
        self.normalize_inputs = normalize_inputs
        self.epsilon = epsilon

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The features of each token."""

    @classmethod
    def from_config(cls, config: FeatureMapConfig) -> FeatureMap:
        """Build from a configuration dataclass; fields that are None keep the constructor's defaults."""
        given = {key: value for key, value in asdict(config).items() if key != "name" and value is not None}
        return cls(**given)
