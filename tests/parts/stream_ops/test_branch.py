import pytest
import torch

import variform as vf
from variform.errors import ConfigError
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.fourier import FourierMix
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.branch import BranchStart, ScaledBranch
from variform.parts.stream_ops.padding import ZeroPadding


def test_scales_what_the_body_gives() -> None:
    part = vf.build(ScaledBranch.spec(body=MLP.spec(), factor=0.5, gain=0.2), dim=6)
    part.gain.data.uniform_()
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(part(x, {}), 0.5 * part.gain * part.body(x, {}))


def test_drops_features_in_training_alone() -> None:
    part = vf.build(ScaledBranch.spec(body=MLP.spec(), dropout=0.5), dim=64)
    x = torch.randn(2, 50, 64)
    whole = part.body(x, {})
    dropped = part.train()(x, {})
    assert 0.4 < (dropped == 0).double().mean() < 0.6
    torch.testing.assert_close(dropped[dropped != 0], 2 * whole[dropped != 0])
    torch.testing.assert_close(part.eval()(x, {}), whole)


@pytest.mark.parametrize("body", [MLP.spec(), ZeroPadding.spec(body=MultiHead.spec(out_bias=True))])
def test_a_branch_begins_as_nothing(body: vf.Spec) -> None:
    part = vf.build(BranchStart.spec(body=body), dim=8, heads=2)
    x = torch.randn(2, 5, 8)
    assert not part(x, {}).any()
    for module in part.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert not part(x, {}).any()


def test_a_branch_begins_smaller() -> None:
    part = vf.build(BranchStart.spec(body=MLP.spec(hidden=1000), scale=0.3), dim=50)
    assert float(part.body.down.weight.detach().std()) == pytest.approx(0.3 * 1000**-0.5, rel=0.02)


def test_a_body_without_a_last_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fourier_mix' has no last map"):
        vf.build(BranchStart.spec(body=FourierMix.spec()), dim=8)
