"""The gated recurrence and folds against torch's and against loops, in float64."""

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.parts.kinds import Output, Streams
from variform.parts.mixer.folded import FoldedMixer
from variform.parts.mixer.gru import GatedRecurrentUnit
from variform.parts.mixer.hyena import Hyena
from variform.parts.mixer.multi_head import MultiHead


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_torchs_gru(bias: bool) -> None:
    theirs = nn.GRU(5, 7, batch_first=True, bias=bias).double()
    mine = vf.build(GatedRecurrentUnit.spec(dim_out=7, bias=bias), dim=5).double()
    for name, param in mine.named_parameters():
        param.data.copy_(dict(theirs.named_parameters())[f"{name}_l0"])
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(mine(x, {}), theirs(x)[0], rtol=0, atol=1e-12)
    begun = vf.build(GatedRecurrentUnit.spec(dim_out=7, bias=bias, like=theirs), dim=5).double()
    torch.testing.assert_close(begun(x, {}), theirs(x)[0], rtol=0, atol=1e-6)


def test_it_begins_with_one_layer_in_one_direction() -> None:
    with pytest.raises(ConfigError, match="one layer and one direction"):
        vf.build(GatedRecurrentUnit.spec(dim_out=7, like=nn.GRU(5, 7, bidirectional=True)), dim=5)


def test_folds_are_interleaved_sequences() -> None:
    part = vf.build(FoldedMixer.spec(every=3), dim=5).double()
    x = torch.randn(2, 10, 5, dtype=torch.float64)
    y = part(x, {})
    for place in range(3):
        torch.testing.assert_close(y[:, place::3], part.mixer(x[:, place::3], {}), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", [MultiHead.spec(), Hyena.spec()], ids=["positions", "cache"])
def test_folds_of_what_goes_by_the_whole_sequences_places_do_not_decode(mixer: vf.Spec) -> None:
    assert FoldedMixer.abilities({"every": 2, "mixer": GatedRecurrentUnit.spec()}).decode
    assert not FoldedMixer.abilities({"every": 2, "mixer": mixer}).decode


def test_folds_refuse_a_mixer_that_publishes() -> None:
    """Streams of each sequence alone, which were dropped."""
    mixer = MultiHead.spec(attention="value_residual")
    with pytest.raises(ConfigError, match="publishes first_values, of folded sequences"):
        vf.build(FoldedMixer.spec(every=2, mixer=mixer), dim=8, heads=2, causal=False)


class Telling(GatedRecurrentUnit):
    """Publishes, and does not say so."""

    def forward(self, x: Tensor, streams: Streams) -> Output:
        return x, {"told": x}


def test_folds_drop_no_stream() -> None:
    with pytest.raises(ShapeError, match="publishes told"):
        FoldedMixer(2, Telling(dim=4, dim_out=4))(torch.randn(1, 4, 4), {})
