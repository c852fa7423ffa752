"""Instances of mixers."""

from __future__ import annotations

from variform.parts.mixer.compositional import Compositional
from variform.parts.mixer.fourier import FourierMix
from variform.parts.mixer.hyena import Hyena
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.pooling import Pooling
from variform.parts.mixer.visual import Visual
from variform.testing.samples import Sample, samples_for


@samples_for(MultiHead)
def _multi_head() -> list[Sample]:
    return [
        Sample(MultiHead.spec()),
        Sample(MultiHead.spec(kv_heads=2, dim_head=6, bias=True, out_bias=True), "grouped"),
        Sample(MultiHead.spec(rotation="rotary", q_norm="rms_norm", k_norm="rms_norm"), "rotary and norms"),
        Sample(MultiHead.spec(attention={"part": "local", "window": 5}, position_bias="alibi"), "local with alibi"),
        Sample(MultiHead.spec(attention="linear", kv_heads=2), "linear"),
    ]


@samples_for(FourierMix)
def _fourier_mix() -> list[Sample]:
    return [Sample(FourierMix.spec()), Sample(FourierMix.spec(groups=4, project=True), "in groups, with a map")]


@samples_for(Compositional)
def _compositional() -> list[Sample]:
    other = {"rules": 3, "dim_attn": 8, "dim_value": 9, "dim_selection": 5}
    return [
        Sample(Compositional.spec()),
        Sample(Compositional.spec(**other, score="mlp", q_compose=True, bias=False), "mlp, other sizes"),
        Sample(Compositional.spec(score="linear", tied=True), "linear, one map"),
    ]


@samples_for(Hyena)
def _hyena() -> list[Sample]:
    return [Sample(Hyena.spec()), Sample(Hyena.spec(order=3, width=8, layers=1, bands=2), "two convolutions")]


@samples_for(Pooling)
def _pooling() -> list[Sample]:
    other = Pooling.spec(pool_size=4, stride=2, padding=1, grid=(4, 6))
    return [Sample(Pooling.spec()), Sample(other, "strided, on a grid")]


@samples_for(Visual)
def _visual() -> list[Sample]:
    return [Sample(Visual.spec()), Sample(Visual.spec(grid=(3, 5)), "on a grid")]
