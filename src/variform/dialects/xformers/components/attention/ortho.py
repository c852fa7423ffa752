"""Orthoformer attention."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.native import NativeAttention
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.parts.attention.orthoformer import OrthoformerAttention

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class LandmarkSelection(StrEnum):
    """How landmarks are chosen."""

    Orthogonal = "orthogonal"
    KMeans = "kmeans"
    KMeans_Spherical = "kmeans_spherical"
    Random = "random"


@dataclass
class OrthoformerAttentionConfig(AttentionConfig):
    """The configuration of `OrthoFormerAttention`."""

    num_landmarks: int | None = None
    subsample_fraction: float | None = None
    landmark_selection: LandmarkSelection | None = None


@register_attention("orthoformer", OrthoformerAttentionConfig)
class OrthoFormerAttention(NativeAttention):
    """Attention by way of landmarks among the queries (Motionformer, Patrick et al. 2021, arXiv:2106.05392).

    Args:
        dropout: probability of zeroing a number of the result, in training.
        num_landmarks: how many landmarks there are; at most that many keys are softmax attention.
        subsample_fraction: the share of the queries among which landmarks are chosen.
        landmark_selection: how they are chosen.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "orthoformer"

    def __init__(
        self,
        dropout: Rate,
        num_landmarks: Size = 32,
        subsample_fraction: Share = 1.0,
        landmark_selection: LandmarkSelection = LandmarkSelection.Orthogonal,
        **superset: Any,
    ) -> None:
        given = {"dropout": dropout, "num_landmarks": num_landmarks, "subsample_fraction": subsample_fraction}
        verify(OrthoFormerAttention, **given, landmark_selection=landmark_selection)
        selection = LandmarkSelection(landmark_selection)
        spec = OrthoformerAttention.spec(
            dropout=dropout, landmarks=num_landmarks, subsample=subsample_fraction, selection=selection.value
        )
        super().__init__(spec)
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "orthoformer")
        self.num_landmarks = num_landmarks
        self.subsample_fraction = subsample_fraction
        self.landmark_selection = selection
