"""Instances of attentions around attentions: each option, one in the other, and the memories that they need."""

from __future__ import annotations

from variform.core.spec import Spec
from variform.parts.attention.delta import DeltaAttention
from variform.parts.attention.distance import DistanceAttention, LengthMemory
from variform.parts.attention.gated import GatedAttention, HeadScaleAttention
from variform.parts.attention.hybrid import HybridAttention
from variform.parts.attention.limited import EndsTogether, LimitedAttention
from variform.parts.attention.memory import LearnedMemory
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.attention.values import LaserAttention, NormedValues, OrthogonalValues
from variform.parts.key_values.latent import LatentKeyValues
from variform.parts.key_values.linear import LinearKeyValues
from variform.parts.mixer.folded import FoldedMixer
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.parts.position.rotary import RotaryRotation
from variform.parts.projection.maps import GatedProjection, HeadOrder, LinearProjection, LowRankProjection
from variform.stack.sublayer import Sublayer
from variform.testing.hosts import Setting, in_layers
from variform.testing.samples import Sample, samples_for


@samples_for(GatedAttention)
def _gated() -> list[Sample]:
    low_rank = LowRankProjection.spec(rank=3, activation="silu")
    return [
        Sample(GatedAttention.spec()),
        Sample(GatedAttention.spec(input_gate=None, output_gate=LinearProjection.spec()), "by the output"),
        Sample(
            GatedAttention.spec(
                input_gate=LinearProjection.spec(bias=True, offset=10.0), input_per_head=True, output_gate=low_rank
            ),
            "a gate a head, and of low rank",
        ),
        Sample(
            GatedAttention.spec(attention=HeadScaleAttention.spec(attention=LocalAttention.spec(window=5))),
            "around a window",
        ),
    ]


@samples_for(LimitedAttention)
def _limited() -> list[Sample]:
    inner = GatedAttention.spec(attention=HeadScaleAttention.spec())
    return [
        Sample(LimitedAttention.spec(back=3)),
        Sample(LimitedAttention.spec(back=4, ahead=2, attention=inner), "both sides"),
    ]


@samples_for(EndsTogether)
def _ends_together() -> list[Sample]:
    return [Sample(EndsTogether.spec(attention=LimitedAttention.spec(back=3, ahead=1)))]


@samples_for(OrthogonalValues)
def _orthogonal() -> list[Sample]:
    inner = NormedValues.spec(attention=LaserAttention.spec())
    return [Sample(OrthogonalValues.spec()), Sample(OrthogonalValues.spec(over="head", attention=inner), "each head")]


@samples_for(LengthMemory)
def _length_memory() -> list[Sample]:
    return [Sample(LengthMemory.spec(), host=_by_distance)]


def _by_distance(memory: Spec, setting: Setting) -> Spec:
    attention = DistanceAttention.spec(attention=SoftmaxAttention.spec(memory=memory))
    return in_layers(lambda spec: Sublayer.spec(body=MultiHead.spec(attention=attention)))(
        LearnedMemory.spec(count=1), setting
    )


@samples_for(GatedProjection)
def _gated_projection() -> list[Sample]:
    return [Sample(GatedProjection.spec(bias=True))]


@samples_for(HeadOrder)
def _head_order() -> list[Sample]:
    return [Sample(HeadOrder.spec(order=(2, 0, 1, 3)))]


@samples_for(ProjectedAttention)
def _projected() -> list[Sample]:
    own = LatentKeyValues.spec(dim_latent=5, own_heads=1, dim_value=3)
    shared = LatentKeyValues.spec(dim_latent=5, own_features=2, norm="rms_norm")
    gated = GatedAttention.spec(attention=HeadScaleAttention.spec())
    query, output = LowRankProjection.spec(rank=5), GatedProjection.spec()
    values = LinearKeyValues.spec(dim_value=3)
    return [
        Sample(ProjectedAttention.spec(query=query, output=output, kv_heads=2, keys=values, attention=gated), "maps"),
        Sample(ProjectedAttention.spec(keys=LatentKeyValues.spec(dim_latent=5), kv_heads=2), "latent"),
        Sample(ProjectedAttention.spec(keys=own, rotation=RotaryRotation.spec()), "latent, own heads"),
        Sample(ProjectedAttention.spec(keys=shared, rotation=RotaryRotation.spec()), "latent, own features"),
        Sample(
            ProjectedAttention.spec(
                keys=LatentKeyValues.spec(dim_latent=5), rotation=RotaryRotation.spec(), k_norm="rms_norm"
            ),
            "latent, all rotated",
        ),
        Sample(ProjectedAttention.spec(attention=OrthogonalValues.spec(over="both"), kv_heads=2), "wide results"),
        Sample(ProjectedAttention.spec(keys=shared, attention=OrthogonalValues.spec()), "latent, without decoding"),
    ]


@samples_for(ProjectedCrossAttention)
def _projected_cross() -> list[Sample]:
    values = LinearKeyValues.spec(dim_value=3)
    return [
        Sample(ProjectedCrossAttention.spec(kv_heads=2, keys=values, output=GatedProjection.spec())),
        Sample(ProjectedCrossAttention.spec(keys=LatentKeyValues.spec(dim_latent=5, own_heads=2)), "latent"),
    ]


@samples_for(LatentKeyValues)
def _latent() -> list[Sample]:
    return [Sample(LatentKeyValues.spec(dim_latent=5))]


@samples_for(HybridAttention)
def _hybrid() -> list[Sample]:
    around = GatedAttention.spec(attention=LocalAttention.spec(window=5))
    folded = FoldedMixer.spec(every=3)
    order = (2, 0, 1, 3)
    return [
        Sample(HybridAttention.spec()),
        Sample(
            HybridAttention.spec(attention=around, mixer=folded, mix=LinearProjection.spec(), head_order=order),
            "folded",
        ),
        Sample(HybridAttention.spec(mixer="mamba", norm=None), "state space"),
    ]


@samples_for(DeltaAttention)
def _delta() -> list[Sample]:
    return [Sample(DeltaAttention.spec()), Sample(DeltaAttention.spec(of="weights"), "of weights")]
