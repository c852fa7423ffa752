"""A mixer beside attention over another sequence: it reads the queries' own, in their order."""

from typing import Any

import pytest
import torch

import variform as vf
from variform.core.spec import Spec
from variform.errors import ConfigError
from variform.parts.attention.hybrid import HybridAttention
from variform.parts.key_values.latent import LatentKeyValues
from variform.parts.mixer.compositional import CrossCompositional
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.stack.sublayer import Sublayer

FACTS = {"dim": 8, "heads": 2, "depth": 1}
MIXERS = {
    "plain": CrossMultiHead.spec(attention=HybridAttention.spec(mixer="mamba")),
    "maps": ProjectedCrossAttention.spec(attention=HybridAttention.spec(mixer="mamba")),
    "latents": ProjectedCrossAttention.spec(
        keys=LatentKeyValues.spec(dim_latent=3), attention=HybridAttention.spec(mixer="gru")
    ),
}


@pytest.mark.parametrize("name", MIXERS)
def test_the_formula(name: str) -> None:
    torch.manual_seed(0)
    part: Any = vf.build(MIXERS[name], **FACTS, causal=True).double()
    x, context = torch.randn(2, 7, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    beside = part.attention.mixer(x, {}).view(2, 7, 2, 4).transpose(1, 2)
    inner, part.attention.norm, part.attention.mixer_norm = part.attention.attention, None, None
    mixed = part(x, {"context": context})
    part.attention = inner
    maps = part.out if name == "plain" else part.output
    attended = part(x, {"context": context})
    expected = 0.5 * attended + 0.5 * maps(beside.transpose(1, 2).reshape(2, 7, 8))
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)


def mixer_of(spec: Spec, causal: bool) -> Spec:
    found = vf.resolve(spec, **FACTS, causal=causal)
    return next(one for _, one in found.walk() if one.name == "mamba")


def test_the_mixer_is_causal_where_the_queries_are() -> None:
    for causal in (True, False):
        assert mixer_of(MIXERS["plain"], causal)["causal"] is causal
        assert mixer_of(MIXERS["maps"], causal)["causal"] is causal
    both_ways = CrossMultiHead.spec(attention=HybridAttention.spec(mixer="fourier_mix"))
    assert not CrossMultiHead.abilities(vf.resolve(both_ways, **FACTS, causal=False).args).causal
    with pytest.raises(ConfigError, match="causal"):
        vf.resolve(Sublayer.spec(body=both_ways), **FACTS, causal=True)


def test_heads_whose_values_are_not_their_own_have_none_beside_them() -> None:
    with pytest.raises(ConfigError, match="reads the sequence of the queries too"):
        vf.resolve(CrossCompositional.spec(attention=HybridAttention.spec()), **FACTS)
