"""FAVOR: softmax attention through random features, in linear time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.feature_maps import FeatureMapType
from variform.dialects.xformers.components.attention.native import NativeAttention
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.dialects.xformers.errors import Wrong, config_error
from variform.parts.attention.favor import FavorAttention as NativeFavor
from variform.parts.attention.random_features import RandomFeatures

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class FavorAttentionConfig(AttentionConfig):
    """The configuration of `FavorAttention`."""

    causal: bool | None = None
    dim_features: int | None = None
    dim_head: int | None = None
    iter_before_redraw: int | None = None
    feature_map: FeatureMapType | None = None


@register_attention("favor", FavorAttentionConfig)
class FavorAttention(NativeAttention):
    """Softmax attention through positive orthogonal random features (Choromanski et al. 2020, arXiv:2009.14794).

    `causal` is by prefix sums over the sequence; `feature_map.features` are the random directions, which are saved
    with the model.

    Args:
        causal: only the past; between two sequences, which then have equal lengths, position i sees j <= i.
        dropout: probability of zeroing an output feature, in training.
        dim_features: number of features; ceil(d (1 + log2 d)), made even, by default, where d is `dim_head`.
        dim_head: features of one head; taken from the first call when None.
        iter_before_redraw: draw the features anew after this many calls in training; None keeps them.
        feature_map_type: which features: SMReg, SMHyp or SMOrf.
        normalize_inputs: scale each query and key to the length sqrt(d) first, which bounds the features.
        feature_map: another name of `feature_map_type`, that of the configuration.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "favor"

    def __init__(
        self,
        causal: bool = False,
        dropout: Rate = 0.0,
        dim_features: Size | None = None,
        dim_head: Size | None = None,
        iter_before_redraw: Size | None = None,
        feature_map_type: FeatureMapType | str | None = FeatureMapType.SMReg,
        normalize_inputs: bool = False,
        feature_map: FeatureMapType | str | None = None,
        **superset: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "superset", "__class__")}
        verify(FavorAttention, **given)
        chosen = FeatureMapType(feature_map_type or FeatureMapType.SMReg)
        if feature_map is not None:
            named = FeatureMapType(feature_map)
            if chosen not in (named, FeatureMapType.SMReg):
                message = f"feature_map is another name of feature_map_type, which says {chosen.value!r}"
                raise config_error([Wrong("feature_map", message, named.value)])
            chosen = named
        super().__init__(
            NativeFavor.spec(
                dim_head=dim_head,
                dim_features=dim_features,
                feature_map=chosen.value,
                iter_before_redraw=iter_before_redraw,
                normalize_inputs=normalize_inputs,
                dropout=dropout,
                causal=causal,
            )
        )
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "favor")
        self.feature_map_type = chosen
        self.iter_before_redraw = iter_before_redraw
        self.normalize_inputs = normalize_inputs

    @property
    def feature_map(self) -> RandomFeatures:
        """What makes the features; its `features` are the random directions, one a column."""
        found = self.native.feature_map
        assert isinstance(found, RandomFeatures)
        return found

    @property
    def dim_features(self) -> int | None:
        """How many features there are; None before the size of a head is known."""
        return self.feature_map.count if self.feature_map.dim else self.feature_map.given_count
