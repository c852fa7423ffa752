"""The fused and the gated feedforwards of the dialect, and its activations."""

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import nn

import variform as vf
from tests.dialects.xformers.cases import DIM, features, mlp
from variform.dialects.xformers.components import Activation, build_activation
from variform.dialects.xformers.components.activations import SmeLU, native_name
from variform.dialects.xformers.components.feedforward import FusedMLP, build_feedforward, fused_mlp


def fused(**more: Any) -> FusedMLP:
    torch.manual_seed(0)
    part: FusedMLP = build_feedforward({**mlp(name="FusedMLP", **more), "dim_model": DIM}).double()
    return part


def test_fusion_is_for_gpus() -> None:
    part, x = fused(), features()
    torch.testing.assert_close(part(x), part.mlp(x), rtol=0, atol=0)
    assert part.path == "plain: fusion is for GPUs, and this is on cpu"
    assert "fusion is for GPUs" in repr(part)


def test_what_is_compiled_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_mlp, "fuses", lambda inputs: True)
    monkeypatch.setattr(fused_mlp, "compiler", functools.partial(torch.compile, backend="aot_eager"))
    part, x = fused(), features().requires_grad_()
    out = part(x)
    assert part.path == "compiled"
    wanted = part.mlp(x)
    leaves = [x, *part.parameters()]
    torch.testing.assert_close(out, wanted)
    both = [torch.autograd.grad(y.square().sum(), leaves) for y in (out, wanted)]
    for got, right in zip(*both, strict=True):
        torch.testing.assert_close(got, right)
    other = copy.deepcopy(part)
    with torch.no_grad():
        other.mlp[0].weight.zero_()
    assert not torch.allclose(other(x), part(x))
    assert {name for name, _ in part.named_parameters()} == {name for name, _ in fused().named_parameters()}


def test_a_compiler_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: Any) -> Any:
        raise RuntimeError("no kernels today\nand a long trace")

    monkeypatch.setattr(fused_mlp, "fuses", lambda inputs: True)
    monkeypatch.setattr(fused_mlp, "compiler", functools.partial(torch.compile, backend=backend))
    part, x = fused(), features()
    for _ in range(2):
        torch.testing.assert_close(part(x), part.mlp(x))
        assert part.path.startswith("plain: the compiler failed: BackendCompilerFailed")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        part(torch.zeros(2, 3, DIM + 1, dtype=torch.float64))


def test_code_compiled_as_a_whole_takes_it_in() -> None:
    part, x = fused(), features()
    torch.testing.assert_close(torch.compile(part, fullgraph=True, backend="aot_eager")(x), part.mlp(x))


GATES = {
    "SwiGLU": nn.functional.silu,
    "GEGLU": nn.functional.gelu,
    "ReGLU": torch.relu,
    "SiGLU": torch.sigmoid,
    "Bilinear": lambda x: x,
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_gated_family(name: str, bias: bool) -> None:
    config = {"name": name, "dim_model": DIM, "hidden_layer_multiplier": 3, "bias": bias, "activation": "relu"}
    part = build_feedforward({**config, "dropout": 0.0}).double()
    assert part.dropped == ("activation",)
    gate, up, down = part.gated.gate, part.gated.up, part.gated.down
    assert up.out_features == 2 * DIM
    assert (gate.bias is not None) == (up.bias is not None) == (down.bias is not None) == bias
    x = features()
    torch.testing.assert_close(part(x), down(GATES[name](gate(x)) * up(x)))
    native: Any = vf.build(part.spec).double()
    native.load_state_dict(part.gated.state_dict())
    torch.testing.assert_close(native(x, {}), part(x))
    dropping = build_feedforward({**config, "dropout": 0.5})
    assert not torch.equal(dropping(x.float()), dropping(x.float()))


def test_gated_feedforwards_refuse_what_nobody_knows() -> None:
    with pytest.raises(TypeError, match="no feedforward has a key 'hiden'"):
        build_feedforward({"name": "SwiGLU", "dim_model": DIM, "hiden": 3})
    with pytest.raises(KeyError, match="did you mean 'SwiGLU'"):
        build_feedforward({"name": "SwiGLu", "dim_model": DIM})


def test_native_feedforwards_take_activations_by_either_name() -> None:
    for name in ("squared_relu", "relu_squared"):
        part = build_feedforward({"name": "glu", "dim_model": DIM, "hidden": 3, "activation": name})
        assert part.spec["activation"] == "relu_squared"
    with pytest.raises(vf.ConfigError, match="activation"):
        build_feedforward({"name": "glu", "dim_model": DIM, "hidden": 3, "activation": "relu_cubed"})


X = [-3.0, -2.0, -0.5, 0.0, 0.7, 2.0, 5.0]
FORMULAS = {
    "squared_relu": lambda x: max(x, 0) ** 2,
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "relu": lambda x: max(x, 0),
    "smelu": lambda x: 0 if x < -2 else x if x > 2 else (x + 2) ** 2 / 8,
    "star_relu": lambda x: 0.8944 * max(x, 0) ** 2 - 0.4472,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("name", list(Activation))
def test_an_activation_is_that_of_its_paper(name: Activation) -> None:
    module = build_activation(name)
    x = torch.tensor(X, dtype=torch.float64)
    wanted = torch.tensor([float(FORMULAS[name.value](value)) for value in X], dtype=torch.float64)
    torch.testing.assert_close(module(x), wanted)
    assert native_name(module) is not None


def test_settings_without_a_native_name_have_none() -> None:
    assert native_name(SmeLU(beta=1.0)) is None
    assert native_name(nn.LeakyReLU(0.2)) is None
    assert native_name(nn.GELU("tanh")) == "gelu_tanh"
    x = torch.tensor([-0.5, 0.5, 3.0])
    torch.testing.assert_close(SmeLU(beta=1.0)(x), torch.tensor([0.0625, 0.5625, 3.0]))
