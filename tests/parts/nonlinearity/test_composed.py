import copy
import pickle

import pytest
import torch
from torch import nn

import variform as vf
from variform.parts.feedforward.mlp import MLP
from variform.parts.nonlinearity.clamps import SoftClamp
from variform.parts.nonlinearity.composed import Chain, Function, UserModule
from variform.parts.nonlinearity.solu import SoLU


def test_solu_is_its_formula() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    weighed = torch.softmax(x, -1) * x
    torch.testing.assert_close(SoLU(5, norm=None)(x), weighed)
    built = vf.build(SoLU.spec(dim=5)).double()
    torch.testing.assert_close(built(x), nn.functional.layer_norm(weighed, (5,)))


def test_a_chain_runs_in_order() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    chain = Chain([SoftClamp(0.5), Function("relu_squared")])
    torch.testing.assert_close(chain(x), torch.relu(0.5 * torch.tanh(x / 0.5)) ** 2)
    with pytest.raises(vf.ConfigError, match=r"functions: at least one"):
        vf.build(Chain.spec(functions=[]))


def test_what_stands_before_the_activation_sees_the_inner_features() -> None:
    part = vf.build(MLP.spec(dim=4, hidden=6, pre_act=SoLU.spec(), activation="relu")).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    inner = part.up(x)
    expected = part.down(torch.relu(nn.functional.layer_norm(inner.softmax(-1) * inner, (6,))))
    torch.testing.assert_close(part(x, {}), expected)


def test_a_users_module_is_copied_and_cannot_be_saved() -> None:
    own = nn.PReLU(init=0.3)
    spec = MLP.spec(dim=4, hidden=6, pre_act=UserModule.spec(module=own), activation="none")
    first, second = vf.build(spec), vf.build(spec)
    assert first.pre_act.module is not own
    assert first.pre_act.module is not second.pre_act.module
    x = torch.randn(2, 3, 4)
    for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        torch.testing.assert_close(twin(x, {}), first(x, {}))
    with pytest.raises(vf.ConfigError, match="not serialisable"):
        vf.to_dict(first.spec)


def test_other_features_out() -> None:
    part = vf.build(MLP.spec(dim=4, dim_out=3))
    assert part(torch.randn(2, 5, 4), {}).shape == (2, 5, 3)
    with pytest.raises(vf.ConfigError, match=r"body.dim_out: .*4 features"):
        vf.build({"part": "sublayer", "body": {"part": "mlp", "dim_out": 3}}, dim=4)
