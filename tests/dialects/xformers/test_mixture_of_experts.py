"""The dialect's mixture of experts: gates, fields, losses, and the native part that it equals."""

import copy
import pickle
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.dialects.xformers.cases import DIM, attention, encoder, features
from variform.dialects.xformers.components import branches
from variform.dialects.xformers.components.feedforward import MLP, MixtureOfExperts, build_feedforward
from variform.dialects.xformers.components.feedforward.mixture_of_experts import (
    GateConfig,
    RoundRobinGate,
    auxiliary_losses,
)
from variform.dialects.xformers.factory import xFormer
from variform.ops.reversible import in_turn

BASE: dict[str, Any] = {
    "name": "MixtureOfExperts",
    "dim_model": DIM,
    "dropout": 0,
    "activation": "relu",
    "number_of_experts": 3,
    "gate": "top_2",
    "hidden_layer_multiplier": 2,
}


def built(**more: Any) -> Any:
    torch.manual_seed(0)
    part = build_feedforward({**BASE, **more}).double()
    for module in part.modules():
        if hasattr(module, "wg"):
            with torch.no_grad():
                module.wg.weight.mul_(4)
    return part


@pytest.mark.parametrize("gate", ["top_1", "top_2", "expert_choice"])
@pytest.mark.parametrize("padded", [False, True])
def test_every_gate_equals_its_native_part(gate: str, padded: bool) -> None:
    part = built(gate=gate)
    native: Any = vf.build(part.spec).double()
    names = {"gate.wg.weight": "router.weight"}
    for number in range(3):
        for place, name in ((0, "up"), (3, "down")):
            for kind in ("weight", "bias"):
                names[f"moe.experts.{number}.mlp.{place}.{kind}"] = f"experts.{number}.{name}.{kind}"
    state = part.state_dict()
    native.load_state_dict({ours: state[theirs] for theirs, ours in names.items()})
    x = features()
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    valid[1, 6:] = False
    more = {"padding": valid} if padded else {}
    streams = {"losses": (), **({"valid": valid} if padded else {})}
    wanted, published = native(x, streams)
    torch.testing.assert_close(part(x, **more), wanted)
    told = dict(published["losses"])
    torch.testing.assert_close(part.l_z, told["router_z"])
    torch.testing.assert_close(part.l_aux, told.get("load_balance", torch.zeros_like(part.l_z)))


def test_names_of_weights_are_upstreams() -> None:
    names = set(built().state_dict())
    assert {"gate.wg.weight", "moe.gate.wg.weight", "moe.experts.0.mlp.0.weight", "moe.experts.2.mlp.3.bias"} <= names
    assert len(list(built().parameters())) == 1 + 3 * 4


def test_round_robin_lets_experts_take_turns() -> None:
    part = built(gate=GateConfig.RoundRobin)
    x = features()
    wanted = torch.stack([part.experts[step % 3](x[:, step : step + 1])[:, 0] for step in range(x.shape[1])], 1)
    torch.testing.assert_close(part(x), wanted)
    assert float(part.l_aux) == 0
    asked = built(gate=_Foreign(RoundRobinGate(DIM, 3)))
    asked.moe.experts.load_state_dict(part.moe.experts.state_dict())
    torch.testing.assert_close(asked(x[:1]), wanted[:1])


class _Foreign(nn.Module):
    """A gate that the library does not know."""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        self.inner = gate

    def forward(self, tokens: Tensor) -> Any:
        return self.inner(tokens)


class _Weights(nn.Module):
    """Weights of all experts, one of which is never visited."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(DIM, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.map(tokens).sigmoid() * torch.tensor([1.0, 0.0, 1.0], dtype=tokens.dtype)


def test_a_module_as_gate_gives_weights() -> None:
    part = built(gate=_Weights())
    x = features()
    weight = part.gate(x)
    wanted = sum(weight[..., e : e + 1] * part.experts[e](x) for e in (0, 2))
    torch.testing.assert_close(part(x), wanted)
    part(x).sum().backward()
    assert bool(part.gate.map.weight.grad.any())
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    valid[0, 3:] = False
    out = part(torch.where(valid.unsqueeze(-1), x, 1e30), padding=valid)
    torch.testing.assert_close(out[valid], wanted[valid])


class _Dispatch(nn.Module):
    """GShard's form: places for two tokens an expert, the rest is dropped; a loss of its own."""

    def __init__(self, more: int = 0) -> None:
        super().__init__()
        self.more = more

    def forward(self, tokens: Tensor) -> Any:
        combine = torch.zeros(len(tokens), 3, 2, dtype=tokens.dtype)
        combine[0, 1, 0], combine[1, 1, 1], combine[2, 0, 0], combine[2, 2, 1] = 0.5, 2.0, 0.25, 0.75
        if self.more:
            combine[3, 1, 0] = 1
        return tokens.sum() * 0 + 3.0, combine, combine != 0


def test_a_module_as_gate_gives_places() -> None:
    part = built(gate=_Dispatch())
    x = features()
    flat, e = x.flatten(0, 1), [lambda row, m=m: m(row.view(1, 1, -1)).view(-1) for m in part.experts]
    wanted = torch.zeros_like(flat)
    wanted[0], wanted[1] = 0.5 * e[1](flat[0]), 2 * e[1](flat[1])
    wanted[2] = 0.25 * e[0](flat[2]) + 0.75 * e[2](flat[2])
    torch.testing.assert_close(part(x), wanted.view_as(x))
    assert float(part.l_aux) == 3
    with pytest.raises(vf.ShapeError, match="several tokens into one place"):
        built(gate=_Dispatch(1))(x)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda t: t, r"returns \[18, 3\], not \[18, 8\]"),
        (lambda t: (0.0, t, t), r"returns \[18, 3, capacity\], not \[18, 8\]"),
        (lambda t: None, "a gate returns weights"),
    ],
)
def test_answers_of_gates_are_checked(answer: Any, message: str) -> None:
    class Gate(nn.Module):
        def forward(self, tokens: Tensor) -> Any:
            return answer(tokens)

    with pytest.raises(AssertionError, match=message):
        built(gate=Gate())(features())


def test_every_field_takes_effect() -> None:
    x = features()
    base = built()(x)
    for change in ({"activation": "gelu"}, {"number_of_experts": 4}, {"gate": "top_1"}):
        assert not torch.allclose(built(**change)(x), base), change
    assert built(hidden_layer_multiplier=3).experts[0].mlp[0].out_features == 3 * DIM
    assert built(hidden_layer_multiplier=None).experts[0].mlp[0].out_features == 4 * DIM
    assert {drop.p for drop in built(dropout=0.3).modules() if isinstance(drop, nn.Dropout)} == {0.3}
    assert built(dropout=0.3).spec["experts"][0]["out_dropout"] == 0.3

    def expert() -> nn.Module:
        return MLP(DIM, 0, None, 1)

    part = built(expert_constructor=expert)
    assert [e.mlp[0].out_features for e in part.experts] == [DIM] * 3
    assert part.experts[0] is not part.experts[1]


@pytest.mark.parametrize(
    ("change", "path", "kind", "message"),
    [
        ({"gate": "top2"}, "gate", KeyError, "did you mean 'top_2'"),
        ({"gate": 2}, "gate", TypeError, "gate"),
        ({"number_of_experts": 0}, "number_of_experts", TypeError, "number_of_experts"),
        ({"number_of_local_experts": 2}, "number_of_local_experts", AssertionError, "need a process group"),
        ({"group": object()}, "group", AssertionError, "need a process group"),
        ({"number_of_expert": 2}, "number_of_expert", TypeError, "did you mean 'number_of_experts'"),
    ],
)
def test_a_mistake_names_its_place(change: dict[str, Any], path: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(vf.ConfigError, match=message) as caught:
        build_feedforward({**BASE, **change})
    assert [problem.path for problem in caught.value.problems] == [path]
    assert isinstance(caught.value, kind)


def test_losses_belong_to_the_last_call_and_to_no_copy() -> None:
    part = built()
    assert part.l_aux is None
    assert part.requires_cuda is False
    part(features())
    first = part.l_aux
    assert first.requires_grad
    part(features(seed=1))
    assert part.l_aux is not first
    for other in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert other.l_aux is None
        torch.testing.assert_close(other(features()), part(features()))
    assert not any("l_aux" in name for name in part.state_dict())


def block(**more: Any) -> dict[str, Any]:
    feed = {name: value for name, value in BASE.items() if name != "dim_model"}
    return encoder(feedforward_config={**feed, **more}, position_encoding_config=None, num_layers=2)


@pytest.mark.parametrize("gate", ["top_2", "expert_choice", "round_robin"])
@pytest.mark.parametrize("reversible", [False, True])
def test_padding_of_a_model_visits_nobody(gate: str, reversible: bool) -> None:
    torch.manual_seed(0)
    model = xFormer({**block(gate=gate), "reversible": reversible}).double().eval()
    x = features(5)
    padded = torch.cat((x, torch.full((2, 4, DIM), 1e3, dtype=torch.float64)), 1)
    valid = torch.arange(9).expand(2, 9) < 5
    torch.testing.assert_close(model(padded, encoder_input_mask=valid)[:, :5], model(x))


def test_a_model_tells_the_losses_of_all_its_layers() -> None:
    torch.manual_seed(0)
    model = xFormer(block()).double()
    assert auxiliary_losses(model) == {}
    out = model(features())
    losses = auxiliary_losses(model)
    found = [m for m in model.modules() if isinstance(m, MixtureOfExperts)]
    assert len(found) == 2
    torch.testing.assert_close(losses["l_aux"], sum(m.l_aux for m in found))
    (out.sum() + losses["l_aux"] + losses["l_z"]).backward()
    assert all(bool(m.gate.wg.weight.grad.any()) for m in found)
    native = vf.build(model.spec)
    assert native(features().float(), losses=True)[1]["load_balance"].shape == (2,)


def test_reversible_layers_leave_losses_with_the_gradients_of_plain_autograd() -> None:
    results = []
    for plainly in (False, True):
        torch.manual_seed(0)
        model = xFormer({**block(), "reversible": True}).double()
        found = [m for m in model.modules() if isinstance(m, MixtureOfExperts)]
        with mock.patch.object(branches, "reversible", in_order if plainly else branches.reversible):
            first = [model(features()), *auxiliary_losses(model).values()]
            second = [model(features(seed=1)), *auxiliary_losses(model).values()]
        loss = sum(value.square().sum() for value in (*first, *second))
        assert isinstance(loss, Tensor)
        left = [(m.l_aux, m.l_z) for m in found]
        results.append([*first[1:], *torch.autograd.grad(loss, list(model.parameters()))])
        assert all(m.l_aux is a and m.l_z is z for m, (a, z) in zip(found, left, strict=True))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def in_order(steps: Any, x1: Tensor, x2: Tensor, sides: Any) -> Any:
    return in_turn(steps)(x1, x2, sides, None)


def test_a_causal_block_refuses_feedforwards_that_look_ahead() -> None:
    causal = {"multi_head_config": attention(causal=True)}
    for feed in (
        {"name": "Conv2DFeedforward", "dropout": 0},
        {**BASE, "gate": "expert_choice"},
        {"name": "expert_choice", "experts": [{"part": "mlp"}] * 2},
    ):
        with pytest.raises(vf.ConfigError, match=r"feedforward_config: lets tokens depend on later ones"):
            xFormer(encoder(feedforward_config=feed, **causal))
    xFormer(encoder(feedforward_config=BASE, **causal))


def test_what_has_no_native_equivalent_says_so() -> None:
    for change, message in (
        ({"gate": "round_robin"}, "a RoundRobinGate has no native equivalent"),
        ({"expert_constructor": nn.Identity}, "an expert of type Identity has no native equivalent"),
    ):
        with pytest.raises(vf.ConfigError, match=message):
            _ = built(**change).spec
