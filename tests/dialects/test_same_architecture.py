"""One encoder, written natively and in all three dialects: equal outputs and gradients after copying the weights."""

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from variform.dialects.configaformers.model_builder import ConfigaFormer
from variform.dialects.x_transformers import Encoder
from variform.dialects.xformers.factory import xFormer, xFormerConfig
from variform.weights.x_transformers import load_x_transformers, to_x_transformers
from variform.weights.xformers import from_native

DIM, HEADS, DEPTH = 32, 4, 2


def native() -> nn.Module:
    """Pre-norm layers of attention and MLP, and a final norm; offsets that x-transformers lacks are zero."""
    attention = {"part": "multi_head", "bias": True, "out_bias": True}
    layer = {
        "part": "layer",
        "sublayers": [{"part": "sublayer", "body": attention}, {"part": "sublayer", "body": "mlp"}],
    }
    stack = {"part": "stack", "layers": [layer] * DEPTH, "norm": "layer_norm"}
    model: nn.Module = vf.build(
        {"part": "transformer", "embedding": None, "stacks": [stack], "dim": DIM, "heads": HEADS}
    ).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            absent = name.endswith("bias") and "up" not in name and "down" not in name
            parameter.copy_(torch.zeros_like(parameter) if absent else torch.randn_like(parameter) * 0.2)
    return model


def x_transformers(weights: dict[str, Tensor]) -> nn.Module:
    model = Encoder(dim=DIM, depth=DEPTH, heads=HEADS, attn_dim_head=DIM // HEADS).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = name.removeprefix("native.").replace("body.body", "body")
            place = f"stacks.0.{own}"
            parameter.copy_(weights[place])
    return model


def xformers(weights: dict[str, Tensor]) -> nn.Module:
    attention = {"name": "scaled_dot_product", "dropout": 0.0, "causal": False}
    config = {
        "block_type": "encoder",
        "num_layers": DEPTH,
        "dim_model": DIM,
        "residual_norm_style": "pre",
        "multi_head_config": {"num_heads": HEADS, "residual_dropout": 0.0, "attention": attention},
        "feedforward_config": {"name": "MLP", "dropout": 0.0, "activation": "gelu", "hidden_layer_multiplier": 4},
    }
    model = xFormer.from_config(xFormerConfig([config])).double()
    model.load_state_dict(from_native(weights, like=model.state_dict()))
    return model


def configaformers(weights: dict[str, Tensor]) -> nn.Module:
    attention = [
        {"type": "make_stream", "output_name": "residual"},
        {"type": "norm"},
        {"type": "linear", "output_name": "queries"},
        {"type": "linear", "output_name": "keys"},
        {"type": "linear", "output_name": "values"},
        {"type": "make_heads", "input_name": "queries", "output_name": "queries", "num_heads": HEADS},
        {"type": "make_heads", "input_name": "keys", "output_name": "keys", "num_heads": HEADS},
        {"type": "mha_dots", "input_name_queries": "queries", "input_name_keys": "keys"},
        {"type": "mha_sum", "input_name_values": "values"},
        {"type": "linear"},
        {"type": "merge_streams", "input_name_1": "residual", "merge_type": "add"},
    ]
    feedforward = [
        {"type": "make_stream", "output_name": "residual"},
        {"type": "norm"},
        {"type": "linear", "output_dim": 4 * DIM},
        {"type": "activation"},
        {"type": "linear", "output_dim": DIM},
        {"type": "merge_streams", "input_name_1": "residual", "merge_type": "add"},
    ]
    blocks = [{"config": attention + feedforward, "repeat": DEPTH}, {"config": [{"type": "norm"}], "repeat": 1}]
    model = ConfigaFormer(
        model_config={"blocks": blocks}, input_streams={"x": ["B", "L_in", DIM]}, verbose=False
    ).double()
    with torch.no_grad():  # both list a layer's norm before its body, and q, k, v, out in this order
        order = [name for name in weights if ".norm." in name or ".body." in name]
        places = sorted(order, key=_as_listed)
        for (_, parameter), name in zip(model.named_parameters(), places, strict=True):
            parameter.copy_(weights[name])
    return model


def _as_listed(name: str) -> tuple[int, int, int, int]:
    steps = name.split(".")
    if steps[2] == "norm":
        return DEPTH, 0, 0, steps[-1] == "bias"
    modules = ["q", "k", "v", "out", "up", "down"]
    place = 0 if "norm" in steps else 1 + modules.index(steps[-2])
    return int(steps[3]), int(steps[5]), place, steps[-1] == "bias"


@pytest.mark.parametrize("spelling", [x_transformers, xformers, configaformers])
def test_equal_outputs_and_gradients(spelling: object) -> None:
    model = native()
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    other = spelling(weights)  # type: ignore[operator]
    x = torch.randn(3, 7, DIM, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    wanted = model(x)
    got = other({"x": y})["x"] if spelling is configaformers else other(src=y) if spelling is xformers else other(y)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    wanted.square().sum().backward()
    got.square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-9, atol=1e-9)
    assert wanted.std() > 0.1


def test_parameters_are_counted_alike() -> None:
    model = native()
    weights = dict(model.state_dict())
    counts = {vf.describe(other, batch=1, length=8).params for other in (model, xformers(weights))}
    assert counts == {sum(p.numel() for p in model.parameters())}
    assert vf.describe(configaformers(weights), batch=1, length=8).params in counts


def test_x_transformers_weights_go_both_ways() -> None:
    model = x_transformers({k: v.detach().clone() for k, v in native().state_dict().items()})
    other = Encoder(dim=DIM, depth=DEPTH, heads=HEADS, attn_dim_head=DIM // HEADS).double()
    load_x_transformers(other, to_x_transformers(model))
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    torch.testing.assert_close(other(x), model(x), rtol=1e-12, atol=1e-12)
