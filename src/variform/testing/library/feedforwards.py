"""Instances of feedforwards, of what they are made of, and of norms."""

from __future__ import annotations

from variform.parts.feedforward.conv2d import Conv2D
from variform.parts.feedforward.expert_choice import ExpertChoice
from variform.parts.feedforward.mixture_of_experts import MixtureOfExperts
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.gate.branches import Branches
from variform.parts.nonlinearity.clamps import SoftClamp, SoftClamped
from variform.parts.nonlinearity.composed import Chain, UserModule
from variform.parts.nonlinearity.solu import SoLU
from variform.parts.norm.adaptive import AdaptiveNorm
from variform.parts.norm.norms import LayerNorm
from variform.testing.hosts import FEED
from variform.testing.samples import Sample, samples_for


@samples_for(Conv2D)
def _conv2d() -> list[Sample]:
    return [Sample(Conv2D.spec(hidden=12)), Sample(Conv2D.spec(hidden=12, grid=(3, 5)), "on a grid")]


@samples_for(LayerNorm)
def _layer_norm() -> list[Sample]:
    return [Sample(LayerNorm.spec()), Sample(LayerNorm.spec(gain=False), "no gain")]


@samples_for(AdaptiveNorm)
def _adaptive() -> list[Sample]:
    return [Sample(AdaptiveNorm.spec()), Sample(AdaptiveNorm.spec(norm="rms_norm"), "of RMSNorm")]


@samples_for(MLP)
def _mlp() -> list[Sample]:
    chain = Chain.spec(functions=[SoftClamp.spec(value=2.0), SoLU.spec()])
    return [
        Sample(MLP.spec()),
        Sample(MLP.spec(hidden=12, pre_act=chain, activation="none", norm="layer_norm"), "bounded SoLU"),
    ]


@samples_for(GLU)
def _glu() -> list[Sample]:
    before = Branches.spec(gate=SoftClamped.spec(value=2.0), up=SoftClamp.spec(value=2.0), gain=True)
    return [Sample(GLU.spec()), Sample(GLU.spec(hidden=12, before=before, activation="none"), "bounded")]


@samples_for(Branches)
def _branches() -> list[Sample]:
    return [Sample(Branches.spec(gate=SoLU.spec(), up=SoftClamp.spec(value=2.0), gain=True))]


@samples_for(Chain)
def _chain() -> list[Sample]:
    return [Sample(Chain.spec(functions=[SoftClamp.spec(value=2.0), SoLU.spec(norm=None)]))]


@samples_for(UserModule)
def _user_module() -> list[Sample]:
    return []  # no file can hold one


@samples_for(MixtureOfExperts)
def _mixture_of_experts() -> list[Sample]:
    return [
        Sample(MixtureOfExperts.spec(experts=[FEED] * 4)),
        Sample(
            MixtureOfExperts.spec(experts=[FEED, FEED.replace(bias=False)], k=1, common=FEED),
            "one of two, and one for all",
        ),
        Sample(MixtureOfExperts.spec(experts=[FEED] * 3, k=3, normalise=False, capacity=0.5), "within a capacity"),
    ]


@samples_for(ExpertChoice)
def _expert_choice() -> list[Sample]:
    return [
        Sample(ExpertChoice.spec(experts=[FEED] * 4)),
        Sample(ExpertChoice.spec(experts=[FEED] * 3, capacity=0.7, common=FEED), "less than one expert a token"),
    ]
