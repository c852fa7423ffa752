"""Instances of position codes, rotations and biases."""

from __future__ import annotations

from variform.parts.position.absolute import LearnedPosition, SinusoidalPosition
from variform.parts.position.dynamic import DynamicBias
from variform.parts.position.polar import PolarRotation
from variform.parts.position.rotary import RotaryRotation
from variform.parts.position.some_heads import SomeHeads
from variform.testing.samples import Sample, samples_for


@samples_for(PolarRotation)
def _polar() -> list[Sample]:
    return [
        Sample(PolarRotation.spec()),
        Sample(PolarRotation.spec(uniform_start=True, scale=0.5), "with phases"),
        Sample(PolarRotation.spec(uniform_start=True, phases="queries"), "with phases of queries"),
    ]


@samples_for(SomeHeads)
def _some_heads() -> list[Sample]:
    rotary = RotaryRotation.spec(xpos=50.0, max_seq_len=None)
    return [Sample(SomeHeads.spec(rotation=rotary, q_heads=(3, 1), k_heads=(1, 3)))]


@samples_for(DynamicBias)
def _dynamic() -> list[Sample]:
    return [Sample(DynamicBias.spec(hidden=6)), Sample(DynamicBias.spec(hidden=6, log=True, norm=True), "log, normed")]


@samples_for(RotaryRotation)
def _rotary() -> list[Sample]:
    return [
        Sample(RotaryRotation.spec(xpos=50.0), "fading"),
        Sample(RotaryRotation.spec()),
        Sample(RotaryRotation.spec(layout="half", rotary_dim=2, max_seq_len=None), "half, without tables"),
        Sample(RotaryRotation.spec(interpolation=2.0, ntk=4.0), "interpolated"),
    ]


@samples_for(LearnedPosition)
def _learned() -> list[Sample]:
    return [Sample(LearnedPosition.spec())]


@samples_for(SinusoidalPosition)
def _sinusoidal() -> list[Sample]:
    return [Sample(SinusoidalPosition.spec())]
