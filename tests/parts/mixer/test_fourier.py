"""The mixer `fourier_mix`."""

import pytest
import torch

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.ops.fourier import naive_fourier_mix
from variform.parts.mixer.fourier import FourierMix

X = torch.randn(2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_is_fnet_by_default_and_groups_split_the_features() -> None:
    assert not list(vf.build(FourierMix.spec(), dim=6).parameters())
    for groups in (1, 2):
        mixer = vf.build(FourierMix.spec(groups=groups), dim=6)
        torch.testing.assert_close(mixer(X, {}), naive_fourier_mix(X, groups), rtol=0, atol=1e-11)
    with pytest.raises(ConfigError, match="must divide dim = 6"):
        vf.build(FourierMix.spec(groups=4), dim=6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_map_follows_on_request(bias: bool) -> None:
    mixer = vf.build(FourierMix.spec(project=True, bias=bias), dim=6).double()
    assert (mixer.out.bias is not None) == bias
    torch.testing.assert_close(mixer(X, {}), mixer.out(naive_fourier_mix(X)), rtol=0, atol=1e-11)
    narrow = vf.build(FourierMix.spec(project=True), dim=64, init_std=0.02, writes=4).out.weight
    assert 0.008 < float(narrow.detach().std()) < 0.012


def test_dropout_and_what_it_refuses() -> None:
    mixer = vf.build(FourierMix.spec(dropout=0.5), dim=6)
    assert bool((mixer(X, {}) == 0).any())
    assert not bool((mixer.eval()(X, {}) == 0).any())
    streams = {"valid": torch.ones(2, 7, dtype=torch.bool), "segments": torch.zeros(2, 7), "mask": object()}
    for name, value in streams.items():
        with pytest.raises(ShapeError, match=f"cannot honour the stream '{name}'"):
            mixer(X, {name: value})
    decoder = vf.override(
        vf.models.gpt(vocab_size=11, max_seq_len=8, dim=8, depth=1, heads=2),
        {"stacks.0.layers.0.sublayers.0.body": FourierMix.spec()},
    )
    with pytest.raises(ConfigError, match=r"'fourier_mix' has no causal form.*multi_head"):
        vf.build(decoder)


def test_its_cost_is_that_of_the_transforms() -> None:
    cost = vf.build(FourierMix.spec(project=True), dim=8).cost(torch.zeros(3, 4, 8), {})
    assert cost is not None
    assert cost.flops == 3 * 5 * 32 * 5 + 2 * 3 * 4 * 64
