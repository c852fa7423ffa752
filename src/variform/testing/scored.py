"""Instances of what changes scores and weights, and of memories, in the models that they are made for."""

from __future__ import annotations

import torch
from torch import Tensor

from variform.parts.attention.memory import JoinedMemory, LearnedMemory, ZeroMemory
from variform.parts.scoring.contextual import ContextualPositions
from variform.parts.scoring.distance import ProjectedDistance
from variform.parts.weighting.around import SignedWeighting, SinkWeighting
from variform.parts.weighting.row import CustomWeighting, GumbelWeighting, TopKWeighting, register_attention_function
from variform.testing.samples import Sample, samples_for


def sharpened(scores: Tensor) -> Tensor:
    """Softmax of twice the scores."""
    return torch.softmax(2 * scores, -1)


register_attention_function("sharpened", sharpened)


@samples_for(JoinedMemory)
def _joined() -> list[Sample]:
    return [Sample(JoinedMemory.spec(memories=[ZeroMemory.spec(), LearnedMemory.spec(count=2)]))]


@samples_for(CustomWeighting)
def _custom() -> list[Sample]:
    return [Sample(CustomWeighting.spec(function="sharpened"))]


@samples_for(ContextualPositions)
def _contextual() -> list[Sample]:
    return [
        Sample(ContextualPositions.spec(positions=4)),
        Sample(ContextualPositions.spec(soft=True, mixing=True), "soft"),
    ]


@samples_for(GumbelWeighting)
def _gumbel() -> list[Sample]:
    return [Sample(GumbelWeighting.spec(), random=True), Sample(GumbelWeighting.spec(hard=False), "soft", random=True)]


@samples_for(ProjectedDistance)
def _projected() -> list[Sample]:
    return [Sample(ProjectedDistance.spec(curves=3, reach=5))]


@samples_for(TopKWeighting)
def _top_k() -> list[Sample]:
    return [Sample(TopKWeighting.spec(count=3)), Sample(TopKWeighting.spec(count=2, straight_through=True), "through")]


@samples_for(SignedWeighting)
def _signed() -> list[Sample]:
    return [Sample(SignedWeighting.spec(weights=SinkWeighting.spec(weights=TopKWeighting.spec(count=3))))]
