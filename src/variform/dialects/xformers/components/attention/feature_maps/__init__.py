"""Random features that approximate the softmax, by name."""

from enum import StrEnum

from variform.dialects.xformers.components.attention.feature_maps.base import FeatureMap, FeatureMapConfig
from variform.dialects.xformers.components.attention.feature_maps.softmax import (
    NormDistribution,
    SMHyperbolic,
    SMOrf,
    SMReg,
    SoftMaxPositiveEstimators,
)


class FeatureMapType(StrEnum):
    """The feature maps of `FavorAttention`."""

    SMOrf = "sm_orf"
    SMHyp = "sm_hyp"
    SMReg = "sm_reg"


_CLASSES: dict[FeatureMapType, type[SoftMaxPositiveEstimators]] = {
    FeatureMapType.SMOrf: SMOrf,
    FeatureMapType.SMHyp: SMHyperbolic,
    FeatureMapType.SMReg: SMReg,
}


def build_feature_map(
    feature_type: FeatureMapType | str,
    dim_features: int,
    iter_before_redraw: int | None = None,
    normalize_inputs: bool = False,
    epsilon: float = 1e-6,
) -> FeatureMap:
    """The feature map of a type; see `SoftMaxPositiveEstimators` for the arguments."""
    return _CLASSES[FeatureMapType(feature_type)](dim_features, iter_before_redraw, normalize_inputs, epsilon)


__all__ = [
    "FeatureMap",
    "FeatureMapConfig",
    "FeatureMapType",
    "NormDistribution",
    "SMHyperbolic",
    "SMOrf",
    "SMReg",
    "SoftMaxPositiveEstimators",
    "build_feature_map",
]
