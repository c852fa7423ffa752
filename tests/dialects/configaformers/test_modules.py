"""Each module type against its formula, written out, in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from variform.dialects.configaformers.model_builder import ConfigaFormer
from variform.dialects.configaformers.modules import TYPES

B, L, D, H = 2, 7, 12, 3


def run(
    module: dict[str, Any], shapes: dict[str, list[Any]], inputs: dict[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    config = {"blocks": [{"config": [module], "repeat": 1}]}
    model = ConfigaFormer(config, shapes, verbose=False).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return dict(model.named_parameters()), model(inputs)


def features(**module: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    x = torch.randn(B, L, D, dtype=torch.float64)
    parameters, out = run(module, {"x": ["B", "L", D]}, {"x": x})
    short = {name.removeprefix("lines.0.lines.0.op."): value for name, value in parameters.items()}
    return short, out, x


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def reference_norm(kind: str, x: Tensor, p: dict[str, Tensor], prefix: str = "") -> Tensor:
    if kind == "layer_norm":
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * p[prefix + "weight"] + p[prefix + "bias"]
    eps = 1e-8 if kind == "rms_norm" else 1e-5
    root = x.square().sum(-1, keepdim=True).sqrt() * x.shape[-1] ** -0.5
    return x / root.clamp(min=eps) * p[prefix + "gain"]


def test_all_types_of_the_generation_are_there() -> None:
    wanted = "embedding linear activation norm make_stream merge_streams make_heads rope mha_dots mha_sum"
    assert set(TYPES) >= {*wanted.split(), "attention_offset"}


def test_embedding() -> None:
    ids = torch.randint(0, 5, (B, L))
    module = {"type": "embedding", "num_classes": 5, "output_dim": D, "output_name": "e"}
    parameters, out = run(module, {"emb_ids": ["B", "L"]}, {"emb_ids": ids})
    (weight,) = parameters.values()
    assert list(out) == ["e"]
    close(out["e"], weight[ids])


def test_embedding_starts_from_the_unit_normal() -> None:
    config = {"blocks": [{"config": [{"type": "embedding", "num_classes": 500, "output_dim": 64}], "repeat": 1}]}
    weight = next(ConfigaFormer(config, {"emb_ids": ["B", "L"]}, verbose=False).parameters())
    assert weight.std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("input_norm", [None, "layer_norm", "rms_norm"])
@pytest.mark.parametrize("output_norm", [None, "scale_norm"])
def test_linear(input_norm: str | None, output_norm: str | None) -> None:
    norms = {k: v for k, v in (("input_norm", input_norm), ("output_norm", output_norm)) if v}
    p, out, x = features(type="linear", output_dim=5, output_name="y", **norms)
    y = reference_norm(input_norm, x, p, "norm.") if input_norm else x
    y = y @ p["project.weight"].T + p["project.bias"]
    close(out["y"], reference_norm(output_norm, y, p, "out_norm.") if output_norm else y)


def test_linear_starts_as_torch_does_and_init_bias_fills_the_bias() -> None:
    config = {"blocks": [{"config": [{"type": "linear", "init_bias": -2, "output_dim": 400}], "repeat": 1}]}
    weight, bias = ConfigaFormer(config, {"x": ["B", "L", 64]}, verbose=False).parameters()
    assert (bias == -2).all()
    assert weight.abs().max() <= 1 / 8
    assert weight.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)


ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: x.clamp(min=0),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    _, out, x = features(type="activation", activation_function=name)
    close(out["x"], ACTIVATIONS[name](x))


def test_activation_is_gelu_by_default() -> None:
    _, out, x = features(type="activation")
    close(out["x"], ACTIVATIONS["gelu"](x))


@pytest.mark.parametrize("names", [["tanh"], ["gelu", "none"], ["relu", "tanh", "sigmoid"], ["none"] * 4])
def test_gated_activation(names: list[str]) -> None:
    p, out, x = features(type="activation", activation_function=names, output_norm="rms_norm")
    pieces = x.split(D // len(names), -1)
    y = math.prod((ACTIVATIONS[name](piece) for name, piece in zip(names, pieces, strict=True)), start=torch.ones(1))
    close(out["x"], reference_norm("rms_norm", y.double(), p, "out_norm."))


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm", "scale_norm"])
def test_norm(kind: str) -> None:
    p, out, x = features(type="norm", norm_type=kind)
    close(out["x"], reference_norm(kind, x, p))


def test_make_stream() -> None:
    _, out, x = features(type="make_stream", output_name="y")
    close(out["y"], x)


@pytest.mark.parametrize("how", ["add", "mult", "multiply", "subtract", "cat"])
def test_merge_streams(how: str) -> None:
    x, y = torch.randn(2, B, L, D, dtype=torch.float64)
    module = {"type": "merge_streams", "input_name_1": "y", "merge_type": how}
    _, out = run(module, {"x": ["B", "L", D], "y": ["B", "L", D]}, {"x": x, "y": y})
    wanted = {"add": y + x, "mult": y * x, "multiply": y * x, "subtract": y - x, "cat": torch.cat((y, x), -1)}
    close(out["x"], wanted[how])


def test_make_heads() -> None:
    _, out, x = features(type="make_heads", num_heads=H)
    close(out["x"], torch.stack(x.split(D // H, -1), 1))


@pytest.mark.parametrize("rotate_dim", [2, 4])
def test_rope_turns_pairs_by_the_last_rows_of_the_table(rotate_dim: int) -> None:
    x = torch.randn(B, H, L, 4, dtype=torch.float64)
    module = {"type": "rope", "rotate_dim": rotate_dim, "max_length": 30}
    _, out = run(module, {"x": ["B", H, "L", 4]}, {"x": x})
    half, expected = rotate_dim // 2, x.clone()
    for row in range(L):
        for i in range(half):
            angle = (30 - L + row) * 10000 ** (-2 * i / rotate_dim)
            a, b = x[:, :, row, i], x[:, :, row, i + half]
            expected[:, :, row, i] = a * math.cos(angle) - b * math.sin(angle)
            expected[:, :, row, i + half] = b * math.cos(angle) + a * math.sin(angle)
    close(out["x"], expected)


def test_mha_dots() -> None:
    q, k = torch.randn(B, H, L, 4, dtype=torch.float64), torch.randn(B, H, 5, 4, dtype=torch.float64)
    module = {"type": "mha_dots", "input_name_queries": "q", "input_name_keys": "k"}
    _, out = run(module, {"q": ["B", H, "L", 4], "k": ["B", H, "C", 4]}, {"q": q, "k": k})
    close(out["attn_dots"], torch.einsum("bhid,bhjd->bhij", q, k) / 2)


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("scaled", [False, True])
def test_attention_offset_is_trimmed_and_broadcast(batch: int, scaled: bool) -> None:
    dots, offset = torch.randn(B, H, L, L, dtype=torch.float64), torch.randn(batch, H, 11, 9, dtype=torch.float64)
    shape = ["B", H, "L", "L"]
    module = {"type": "attention_offset", "scaled": scaled}
    p, out = run(module, {"attn_dots": shape, "attn_offset": shape}, {"attn_dots": dots, "attn_offset": offset})
    factor = next(iter(p.values())) if scaled else 1
    close(out["attn_dots"], factor * dots + offset[:, :, :L, :L])


@pytest.mark.parametrize("function", ["softmax", "relu", "tanh"])
@pytest.mark.parametrize("norm", [None, "layer_norm"])
def test_mha_sum_splits_and_merges_flat_values(function: str, norm: str | None) -> None:
    dots, v = torch.randn(B, H, L, 5, dtype=torch.float64), torch.randn(B, 5, D, dtype=torch.float64)
    module = {
        "type": "mha_sum",
        "input_name_values": "v",
        "attn_function": function,
        "output_name_attention_scores": "scores",
        **({"norm_value_heads": norm} if norm else {}),
    }
    p, out = run(module, {"attn_dots": ["B", H, "L", "C"], "v": ["B", "C", D]}, {"attn_dots": dots, "v": v})
    p = {name.removeprefix("lines.0.lines.0.op.norm."): value for name, value in p.items()}
    weights = {"softmax": dots.exp() / dots.exp().sum(-1, keepdim=True), "relu": dots.clamp(min=0), "tanh": dots.tanh()}
    values = torch.stack(v.split(D // H, -1), 1)
    values = reference_norm(norm, values, p) if norm else values
    y = torch.einsum("bhij,bhjd->bhid", weights[function], values)
    close(out["scores"], weights[function])
    close(out["x"], torch.cat(y.unbind(1), -1))


def test_mha_sum_keeps_the_heads_of_values_that_have_them() -> None:
    dots, v = torch.randn(B, H, L, 5, dtype=torch.float64), torch.randn(B, H, 5, 4, dtype=torch.float64)
    module = {"type": "mha_sum", "input_name_values": "v", "input_name_attn_dots": "attn_dots"}
    _, out = run(module, {"attn_dots": ["B", H, "L", "C"], "v": ["B", H, "C", 4]}, {"attn_dots": dots, "v": v})
    close(out["x"], F.softmax(dots, -1) @ v)


@pytest.mark.parametrize("function", ["softmax", "relu", "tanh"])
def test_a_masked_score_weighs_nothing(function: str) -> None:
    dots = torch.randn(B, H, L, L, dtype=torch.float64)
    dots = dots.masked_fill(torch.ones(L, L, dtype=torch.bool).triu(1), torch.finfo(torch.float32).min * 2**-8)
    v = torch.randn(B, L, D, dtype=torch.float64)
    module = {"type": "mha_sum", "input_name_values": "v", "attn_function": function}
    shapes = {"attn_dots": ["B", H, "L", "L"], "v": ["B", "L", D]}
    _, out = run(module, shapes, {"attn_dots": dots, "v": v})
    changed = v.clone()
    changed[:, 4:] += 1
    _, other = run(module, shapes, {"attn_dots": dots, "v": changed})
    assert torch.equal(out["x"][:, :4], other["x"][:, :4])
